//! One system under blows: a node, its daemon, a container's mount, and whoever reads there.
//!
//! In: a node that has pulled the image lazily. Out: what its readers saw. Invariant: a mount that died is put away and made anew, as for
//! a container that is started again, so that each round has something to lose; on whatever way out nobody is left waiting for a
//! daemon.
//! Not here: the table (`report.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::ChainId;

use super::readers::{Part, READERS, Random, Readers};
use super::report::Seen;
use super::{Blow, RESTART_AFTER, SERVER_AWAY, SurvivalConfig};
use crate::playground::{
    PlaygroundError, Result, measure, mounts,
    node::{MountedView, Node},
    progress::Progress,
    shim::Shim,
};
use crate::relay::Relay;

/// What is promised for Headstart: nobody waits longer once the successor is up.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// Longer nobody is watched.
const WATCH_MAX: Duration = Duration::from_secs(30);
/// Reading, before a blow and after it.
const BEFORE: Duration = Duration::from_millis(700);
const AFTER: Duration = Duration::from_millis(1500);
/// One try of a mount.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a mount is tried.
const MOUNT_TRIES: Duration = Duration::from_secs(20);
const MOUNT_AGAIN: Duration = Duration::from_millis(500);
/// A service manager tries for ever; so often is enough to say that it is in vain.
const STARTS_MAX: usize = 3;
/// Reads of a mount that was made after the blow.
const FRESH_READS: usize = 20;

/// What is read, as it should be.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) unpacked: PathBuf,
    /// The small ones, in order.
    pub(super) files: Arc<[PathBuf]>,
}

pub(super) struct System<'a> {
    seen: Seen,
    /// Before the node, which removes it.
    view: Option<MountedView>,
    node: Node,
    chain: ChainId,
    link: &'a Relay,
    image: &'a Image,
}

impl Drop for System<'_> {
    fn drop(&mut self) {
        self.link.cut(false);
        // Whoever still reads gets an error.
        if let Some(shim) = &self.node.shim {
            Shim::end_holder(&shim.root);
        }
    }
}

impl<'a> System<'a> {
    pub(super) fn new(name: &str, node: Node, chain: ChainId, link: &'a Relay, image: &'a Image) -> Self {
        Self {
            seen: Seen::new(name),
            view: None,
            node,
            chain,
            link,
            image,
        }
    }

    pub(super) fn is_lazy(&self) -> bool {
        self.node
            .presenter()
            .is_some_and(|(root, _)| !mounts::fuse_below(root).is_empty())
    }

    pub(super) async fn run(mut self, config: &SurvivalConfig, progress: &Progress) -> Result<Seen> {
        for round in 0..config.rounds {
            progress.step(format!("{}: round {} of {}", self.seen.name, round + 1, config.rounds));
            self.round(round, config).await?;
        }
        self.view = None;
        Ok(self.seen.clone())
    }

    async fn round(&mut self, round: usize, config: &SurvivalConfig) -> Result<()> {
        measure::drop_page_cache();
        let lazy = match &self.view {
            Some(view) => view.path.clone(),
            None => match self.mount(&format!("container-{round}")).await {
                Ok(view) => self.view.insert(view).path.clone(),
                Err(error) => {
                    self.seen
                        .note(format!("round {}: no container could be mounted: {error}", round + 1));
                    // Perhaps the next daemon can.
                    return self.blow(round, config.blow).await.map(drop);
                }
            },
        };
        let part = self.part(lazy, round, config);
        let readers = Readers::start(part.clone()).map_err(PlaygroundError::io("start readers"))?;
        // Another moment of what it does each time.
        tokio::time::sleep(BEFORE + Duration::from_millis(17) * (round as u32 % 12)).await;
        let up = self.blow(round, config.blow).await?;
        self.watch(&readers, up).await;
        let (before, right) = (readers.counts(), readers.right());
        tokio::time::sleep(AFTER).await;
        let all_go_on = readers.right().iter().zip(right).all(|(now, then)| *now > then);
        let went_on = all_go_on && readers.counts().failed() == before.failed();
        self.seen.went_on += usize::from(went_on);
        let (counts, hanging) = readers.stop().await;
        self.seen.add(&counts);
        self.seen.hanging += hanging;
        if !went_on {
            self.view = None;
        }
        if self.is_fresh_right(part, round).await {
            self.seen.fresh_right += 1;
        }
        Ok(())
    }

    /// What nobody read in rounds before.
    fn part(&self, lazy: PathBuf, round: usize, config: &SurvivalConfig) -> Part {
        let of = |len: u64, at: usize| len * at as u64 / config.rounds as u64;
        let (files, len) = (&self.image.files, self.image.files.len() as u64);
        Part {
            lazy,
            unpacked: self.image.unpacked.clone(),
            files: files[of(len, round) as usize..of(len, round + 1) as usize].into(),
            big: of(config.big_bytes, round)..of(config.big_bytes, round + 1),
        }
    }

    /// Again and again for a while, as a kubelet would: containerd takes some seconds until it connects to a daemon anew.
    async fn mount(&self, key: &str) -> Result<MountedView> {
        let begun = Instant::now();
        let mut again = 0;
        loop {
            let key = format!("{key}-{again}");
            let error = match tokio::time::timeout(PATIENCE, self.node.mount_as_container(&key, &self.chain)).await {
                Ok(Ok(view)) => return Ok(view),
                Ok(Err(error)) => error,
                Err(_) => PlaygroundError::unexpected("mount a container", "it took too long"),
            };
            if begun.elapsed() > MOUNT_TRIES {
                return Err(error);
            }
            tokio::time::sleep(MOUNT_AGAIN).await;
            again += 1;
        }
    }

    /// Returns when all is up again, and when that was.
    async fn blow(&mut self, round: usize, blow: Blow) -> Result<Instant> {
        self.seen.blows += 1;
        if blow == Blow::Server {
            self.link.cut(true);
            tokio::time::sleep(SERVER_AWAY).await;
            self.link.cut(false);
            return Ok(Instant::now());
        }
        self.node.kill_presenter();
        let mut failed = None;
        for _ in 0..STARTS_MAX {
            tokio::time::sleep(RESTART_AFTER).await;
            match self.node.restart_presenter().await {
                Ok(()) => return Ok(Instant::now()),
                Err(error) => {
                    self.seen
                        .note(format!("round {}: a successor did not start: {error}", round + 1));
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| PlaygroundError::unexpected("start a successor", "nobody tried")))
    }

    /// How long each reader waits for the end of what it is at.
    async fn watch(&mut self, readers: &Readers, up: Instant) {
        let before = readers.ended();
        let mut waits: [Option<Duration>; READERS] = [None; READERS];
        while waits.iter().any(Option::is_none) && up.elapsed() < WATCH_MAX {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let now = readers.ended();
            for reader in 0..READERS {
                if waits[reader].is_none() && now[reader] > before[reader] {
                    waits[reader] = Some(up.elapsed());
                }
            }
        }
        for wait in waits {
            let wait = wait.unwrap_or(WATCH_MAX);
            self.seen.stuck += usize::from(wait > STUCK_AFTER);
            self.seen.wait_max = self.seen.wait_max.max(wait);
        }
    }

    /// Whether a container that is started now reads what it should.
    async fn is_fresh_right(&mut self, part: Part, round: usize) -> bool {
        let view = match self.mount(&format!("fresh-{round}")).await {
            Ok(view) => view,
            Err(error) => {
                self.seen.note(format!("round {}: no new mount: {error}", round + 1));
                return false;
            }
        };
        let part = Part {
            lazy: view.path.clone(),
            ..part
        };
        let compare = move || {
            let mut random = Random::new(4711 + round as u64);
            (0..FRESH_READS)
                .map(|_| part.compare(&mut random))
                .find(|outcome| !matches!(outcome, Ok(true)))
        };
        let compared = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(compare)).await;
        let why = match compared {
            Ok(Ok(None)) => return true,
            Ok(Ok(Some(Ok(_)))) => "wrong bytes".to_owned(),
            Ok(Ok(Some(Err(error)))) => error.to_string(),
            Ok(Err(_)) | Err(_) => "it was not read to the end".to_owned(),
        };
        self.seen.note(format!("round {}: a new mount: {why}", round + 1));
        false
    }
}
