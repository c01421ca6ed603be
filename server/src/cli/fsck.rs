//! `fsck`: by the server that runs, or by ourselves on its data directory.
//!
//! In: where the server is, whether to repair. Out: a report; an error when something stays damaged.
//! Invariant: a data directory is only touched when no server answers on its socket, and under the store's lock; a socket
//! that nobody listens on is said to be dead.
//! Not here: the checks ([`crate::scrub`]).

use std::{io::ErrorKind, ops::ControlFlow, os::unix::net::UnixStream, path::Path};

use indicatif::ProgressBar;

use super::{CliError, Place, bar, show};
use crate::{
    admin::{SOCKET, api},
    config::Config,
    scrub::{Progress, Report, offline::Fsck},
};

pub struct Wanted {
    pub repair: bool,
    pub bytes_per_sec: Option<u64>,
    pub json: bool,
}

pub async fn run(wanted: &Wanted, place: &Place, above: Option<&Path>) -> Result<(), CliError> {
    let bar = bar::bytes(wanted.json);
    let report = match is_there(place, above)? {
        true => ask(wanted, place, above, &bar).await?,
        false => alone(wanted, &place.load(above)?, &bar)?,
    };
    bar.finish_and_clear();
    show::scrubbed(&report, wanted.json)?;
    match report.is_clean() {
        true => Ok(()),
        false => Err(CliError::Damaged(report.damaged_count - report.repaired_count)),
    }
}

/// Whether a server listens. Whoever names a socket means a server.
fn is_there(place: &Place, above: Option<&Path>) -> Result<bool, CliError> {
    if place.socket.is_some() {
        return Ok(true);
    }
    let path = place.load(above)?.data_dir.join(SOCKET);
    match UnixStream::connect(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            eprintln!(
                "headstart-server: {} is there, but no server listens on it (it was killed); checking its data directly",
                path.display()
            );
            Ok(false)
        }
        Err(error) => Err(CliError::NoServer {
            path,
            why: error.to_string(),
        }),
    }
}

async fn ask(wanted: &Wanted, place: &Place, above: Option<&Path>, bar: &ProgressBar) -> Result<Report, CliError> {
    let what = api::Fsck {
        repair: wanted.repair,
        bytes_per_sec: wanted.bytes_per_sec,
    };
    let mut done = None;
    let client = place.client(above)?;
    let asked = client.lines(api::FSCK, &what, |line| {
        match serde_json::from_slice(line)? {
            api::Checking::Progress(progress) => show_progress(bar, progress),
            api::Checking::Done(report) => {
                done = Some(report);
                return Ok(ControlFlow::Break(()));
            }
            api::Checking::Failed { error } => return Err(CliError::Refused(error)),
        }
        Ok(ControlFlow::Continue(()))
    });
    asked.await?;
    done.ok_or_else(|| CliError::Refused("check the data: the server went away".into()))
}

fn alone(wanted: &Wanted, config: &Config, bar: &ProgressBar) -> Result<Report, CliError> {
    let fsck = Fsck {
        data_dir: &config.data_dir,
        cache: &config.cache,
        quarantine_bytes_max: config.scrub.quarantine_bytes_max,
        // Nobody else needs the disk; 0 is no limit.
        bytes_per_sec: wanted.bytes_per_sec.unwrap_or(0),
        repair: wanted.repair,
    };
    fsck.run(&mut |progress| show_progress(bar, progress))
        .map_err(|error| CliError::Refused(error.to_string()))
}

fn show_progress(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.done_bytes);
}
