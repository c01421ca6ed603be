//! The subcommands: they talk to a running server, or ([`convert`], [`dedup`]) work on files without one.
//!
//! In: arguments. Out: text on standard output, an exit status: 0 when everything that was asked for was done.
//! Invariant: nothing here touches the data directory but its socket, except `convert --data-dir`, and `fsck` when no
//! server runs, which hold the store's lock while they do. `--json` prints what the server said.
//! Not here: what the server does ([`crate::admin`]).

mod bar;
mod client;
mod convert;
mod dedup;
mod fsck;
mod local;
mod profile;
mod show;
mod usage;
mod warm;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    admin::{SOCKET, api},
    config::{Config, ConfigError},
    ingest::ConvertError,
    reclaim::Report,
    store::StoreError,
};
use client::Client;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists what a running server holds, most recently used first.
    Ls {
        #[arg(value_enum, default_value = "images")]
        what: Kind,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Rows.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        server: Place,
    },
    /// Keeps an image (or a digest) whatever the budgets say. A pinned tag follows the tag.
    Pin {
        #[arg(value_name = "IMAGE|DIGEST", required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        server: Place,
    },
    /// Lifts a pin.
    Unpin {
        #[arg(value_name = "IMAGE|DIGEST", required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        server: Place,
    },
    /// Removes an image, except what other images need, or a digest. The next request fetches it again.
    Rm {
        #[arg(value_name = "IMAGE|DIGEST", required = true)]
        targets: Vec<String>,
        /// Also if it is pinned.
        #[arg(long)]
        force: bool,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Place,
    },
    /// Reclaims now: budgets, ages, and garbage in packs.
    Gc {
        /// Changes nothing; says what would go.
        #[arg(long)]
        dry_run: bool,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Place,
    },
    /// Reads everything that is kept again and verifies it: by the server that runs, or without one on its data.
    Fsck {
        /// Sets aside or forgets what is damaged, so that it is fetched or converted again.
        #[arg(long)]
        repair: bool,
        /// Bytes read in a second; 0: no limit. Left out: as the server is configured; without one, no limit.
        #[arg(long, value_name = "N")]
        bytes_per_sec: Option<u64>,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Place,
    },
    /// Fetches and converts images before anybody asks for them.
    Warm {
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// os/architecture[/variant], several with commas. Left out: the server's own.
        #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
        platforms: Vec<String>,
        /// Every manifest of an index.
        #[arg(long, conflicts_with = "platforms")]
        all_platforms: bool,
        /// Every event as a line of JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: Place,
    },
    /// What starts of images need first: learnt from nodes, or pinned.
    #[command(subcommand)]
    Profile(profile::Profile),
    Convert(convert::Arguments),
    Dedup(dedup::Arguments),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Images,
    Blobs,
    Layers,
    Pins,
}

/// Where the server is.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The server's configuration, for its data_dir.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's administration socket; above --config.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Fits "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("start threads: {error}")]
    Threads { error: std::io::Error },
    #[error("reach a running server at {path}: {why}")]
    NoServer { path: PathBuf, why: String },
    #[error("talk to the server: {0}")]
    Http(#[from] reqwest::Error),
    #[error("understand the server: {0}")]
    Answer(#[from] serde_json::Error),
    /// The server's own words.
    #[error("{0}")]
    Refused(String),
    #[error("warm {failed} of {count} images")]
    NotWarm { failed: usize, count: usize },
    #[error("{what} {path}: {error}")]
    File {
        what: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("open the store: {0}")]
    Store(#[from] StoreError),
    #[error("convert {failed} of {count} layers")]
    NotConverted { failed: usize, count: usize },
    #[error("take apart {layer}: {error}")]
    Survey { layer: String, error: ConvertError },
    #[error("read {layer} of {image}: its original is not here (warm fetches it)")]
    NotHere { image: String, layer: String },
    #[error("finish: interrupted")]
    Interrupted,
    #[error("run a task: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("find everything whole: {0} things are damaged and not repaired")]
    Damaged(u64),
    #[error("print: {0}")]
    Print(#[from] std::io::Error),
}

impl Place {
    /// `above`: a `--config` before the subcommand.
    fn client(&self, above: Option<&Path>) -> Result<Client, CliError> {
        let path = match &self.socket {
            Some(path) => path.clone(),
            None => self.load(above)?.data_dir.join(SOCKET),
        };
        Client::new(path)
    }

    fn load(&self, above: Option<&Path>) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref().or(above))
    }
}

/// Runs a subcommand.
pub async fn run(command: Command, above: Option<&Path>) -> Result<(), CliError> {
    match command {
        Command::Ls {
            what,
            json,
            limit,
            server,
        } => {
            let client = server.client(above)?;
            match what {
                Kind::Images => show::images(client.list(api::IMAGES, limit).await?, json),
                Kind::Blobs => show::objects(client.list(api::BLOBS, limit).await?, json),
                Kind::Layers => show::objects(client.list(api::LAYERS, limit).await?, json),
                Kind::Pins => show::pins(client.list(api::PINS, limit).await?, json),
            }
        }
        Command::Pin { targets, server } => set_pins(&server.client(above)?, api::PIN, targets, "pinned").await,
        Command::Unpin { targets, server } => set_pins(&server.client(above)?, api::UNPIN, targets, "unpinned").await,
        Command::Rm {
            targets,
            force,
            json,
            server,
        } => {
            let client = server.client(above)?;
            for target in targets {
                let report: Report = client.post(api::REMOVE, &api::What { target, force }).await?;
                show::report(&report, json)?;
            }
            Ok(())
        }
        Command::Gc { dry_run, json, server } => {
            let report: Report = server.client(above)?.post(api::COLLECT, &api::How { dry_run }).await?;
            show::report(&report, json)
        }
        Command::Fsck {
            repair,
            bytes_per_sec,
            json,
            server,
        } => {
            let wanted = fsck::Wanted {
                repair,
                bytes_per_sec,
                json,
            };
            fsck::run(&wanted, &server, above).await
        }
        Command::Warm {
            images,
            platforms,
            all_platforms,
            json,
            server,
        } => {
            let what = api::Warm {
                images,
                platforms,
                all_platforms,
            };
            warm::run(&server.client(above)?, &what, json).await
        }
        Command::Profile(what) => profile::run(what, above).await,
        Command::Convert(arguments) => convert::run(arguments, above).await,
        Command::Dedup(arguments) => dedup::run(arguments, above).await,
    }
}

async fn set_pins(client: &Client, path: &str, targets: Vec<String>, done: &str) -> Result<(), CliError> {
    for target in targets {
        let what = api::What { target, force: false };
        let changed: api::Changed = client.post(path, &what).await?;
        let already = if changed.changed { "" } else { " (already)" };
        show::line(&format!("{} {done}{already}", what.target))?;
    }
    Ok(())
}
