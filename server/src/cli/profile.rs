//! `profile`: what starts of images need first, shown, taken out, put in, pinned.
//!
//! In: image references, files. Out: tables, files, what changed.
//! Invariant: an export that cannot be written whole leaves no file; `--json` prints what the server said.
//! Not here: what the server does ([`crate::admin`]).

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use clap::Subcommand;

use super::{CliError, Place, client::Client, show};
use crate::{admin::api, profile::export::Export};

/// Files that are read: an export, or a list of some thousand paths.
const FILE_SIZE_MAX: u64 = 32 << 20;
/// Files that are shown of one chunk.
const FILES_SHOWN: usize = 3;

#[derive(Debug, Subcommand)]
pub enum Profile {
    /// Shows what starts of an image need, in order; without an image, what is known of which.
    Show {
        #[arg(value_name = "IMAGE")]
        image: Option<String>,
        /// The kind of start.
        #[arg(long, value_name = "HEX")]
        class: Option<String>,
        #[arg(long)]
        json: bool,
        /// Rows.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        server: Place,
    },
    /// Writes a profile as JSON, for another server or another build.
    Export {
        #[arg(value_name = "IMAGE")]
        image: String,
        #[arg(long, value_name = "HEX")]
        class: Option<String>,
        /// Left out: standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        server: Place,
    },
    /// Takes an exported profile as one more start of an image; what is not in the image is found by path, or left out.
    Import {
        #[arg(value_name = "IMAGE")]
        image: String,
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        server: Place,
    },
    /// Puts files of a repository's images first, whatever starts say. Without files: lists them.
    Pin {
        #[arg(value_name = "IMAGE")]
        image: String,
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
        /// A list that ctr-remote recorded for eStargz (--record-out, --estargz-record-in): lines of {"path": "..."}.
        #[arg(long, value_name = "FILE")]
        record_in: Option<PathBuf>,
        #[command(flatten)]
        server: Place,
    },
    /// Lifts such pins.
    Unpin {
        #[arg(value_name = "IMAGE")]
        image: String,
        #[arg(value_name = "PATH", required_unless_present = "record_in")]
        paths: Vec<String>,
        #[arg(long, value_name = "FILE")]
        record_in: Option<PathBuf>,
        #[command(flatten)]
        server: Place,
    },
    /// Forgets what was learnt of an image.
    Forget {
        #[arg(value_name = "IMAGE")]
        image: String,
        #[command(flatten)]
        server: Place,
    },
}

pub async fn run(what: Profile, above: Option<&Path>) -> Result<(), CliError> {
    match what {
        Profile::Show {
            image: None,
            json,
            limit,
            server,
            ..
        } => list(&server.client(above)?.list(api::PROFILES, limit).await?, json),
        Profile::Show {
            image: Some(image),
            class,
            json,
            limit,
            server,
        } => {
            let what = api::ProfileOf { image, class };
            let shown: api::ProfileShown = server.client(above)?.post(api::PROFILE, &what).await?;
            match json {
                true => show::json(&shown),
                false => one(&shown, limit),
            }
        }
        Profile::Export {
            image,
            class,
            output,
            server,
        } => {
            let what = api::ProfileOf { image, class };
            let shown: api::ProfileShown = server.client(above)?.post(api::PROFILE, &what).await?;
            match output {
                Some(path) => write(&path, &shown.export),
                None => show::json(&shown.export),
            }
        }
        Profile::Import { image, file, server } => {
            let export: Export = serde_json::from_str(&read(&file)?)?;
            let what = api::ProfileImport { image, export };
            let changed: api::Changed = server.client(above)?.post(api::PROFILE_IMPORT, &what).await?;
            let already = if changed.changed { "" } else { " (already)" };
            show::line(&format!("{} imported{already}", what.image))
        }
        Profile::Pin {
            image,
            paths,
            record_in,
            server,
        } => {
            let lists = paths.is_empty() && record_in.is_none();
            let pinned = pins(&server.client(above)?, api::PROFILE_PIN, image, paths, record_in).await?;
            if lists {
                for path in &pinned.paths {
                    show::line(path)?;
                }
                return Ok(());
            }
            let (changed, count) = (pinned.changed, pinned.paths.len());
            show::line(&format!(
                "{}: {changed} files pinned, {count} in all",
                pinned.repository
            ))
        }
        Profile::Unpin {
            image,
            paths,
            record_in,
            server,
        } => {
            let pinned = pins(&server.client(above)?, api::PROFILE_UNPIN, image, paths, record_in).await?;
            let (changed, count) = (pinned.changed, pinned.paths.len());
            show::line(&format!(
                "{}: {changed} files unpinned, {count} are left",
                pinned.repository
            ))
        }
        Profile::Forget { image, server } => {
            let what = api::ProfileOf { image, class: None };
            let forgotten: api::ProfileForgotten = server.client(above)?.post(api::PROFILE_FORGET, &what).await?;
            show::line(&format!(
                "{}: {} kinds of starts forgotten",
                what.image, forgotten.classes
            ))
        }
    }
}

async fn pins(
    client: &Client,
    path: &str,
    image: String,
    paths: Vec<String>,
    record_in: Option<PathBuf>,
) -> Result<api::ProfilePinned, CliError> {
    let record = record_in.map(|file| read(&file)).transpose()?;
    client.post(path, &api::ProfilePin { image, paths, record }).await
}

fn list(list: &api::List<api::Profile>, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return show::json(list);
    }
    let mut table = show::table(&["REPOSITORY", "CONFIG", "CLASS", "STARTS", "NODES", "SIZE", "USED"]);
    for profile in &list.items {
        table.add_row([
            profile.repositories.first().cloned().unwrap_or_default(),
            show::short(&profile.config.to_string()),
            profile.class.to_string().chars().take(12).collect(),
            profile.starts.to_string(),
            profile.nodes.to_string(),
            show::size(profile.bytes),
            show::ago(profile.used_unix_ms),
        ]);
    }
    show::line(&table.to_string())?;
    show::line(&format!(
        "{} of {}, {} in all",
        list.items.len(),
        list.count,
        show::size(list.bytes)
    ))
}

fn one(shown: &api::ProfileShown, limit: Option<usize>) -> Result<(), CliError> {
    let chunks = &shown.export.chunks;
    let mut table = show::table(&["#", "LAYER", "CHUNK", "SIZE", "FILES"]);
    for (number, chunk) in (1..).zip(chunks).take(limit.unwrap_or(usize::MAX)) {
        let mut files: Vec<&str> = chunk.files.iter().map(|(path, ..)| path.as_str()).collect();
        files.dedup();
        let more = files.len().saturating_sub(FILES_SHOWN);
        let mut text = files[..files.len() - more].join(" ");
        if more > 0 {
            text += &format!(" +{more}");
        }
        let row: [String; 5] = [
            number.to_string(),
            chunk.layer.to_string(),
            show::short(&chunk.chunk.to_string()),
            show::size(u64::from(chunk.bytes)),
            // Names are the image's own.
            text.escape_debug().to_string(),
        ];
        table.add_row(row);
    }
    show::line(&table.to_string())?;
    let profile = &shown.profile;
    show::line(&format!(
        "{} {}: {} chunks, {}, from {} starts, {}",
        shown.manifest,
        profile.class,
        profile.chunk_count,
        show::size(profile.bytes),
        profile.starts,
        profile.origin.as_str(),
    ))
}

fn read(path: &Path) -> Result<String, CliError> {
    let failed = |error| CliError::File {
        what: "read",
        path: path.to_owned(),
        error,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    match text.len() as u64 > FILE_SIZE_MAX {
        true => Err(failed(std::io::ErrorKind::FileTooLarge.into())),
        false => Ok(text),
    }
}

fn write(path: &Path, export: &Export) -> Result<(), CliError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, export)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        // What there is of it is of no use.
        let _ = fs::remove_file(&new);
        CliError::File {
            what: "write",
            path: path.to_owned(),
            error,
        }
    })
}
