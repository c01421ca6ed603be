//! Daemons of lazy snapshotters killed under readers: Headstart's shim, and beside it the others'.
//!
//! In: a [`SurvivalConfig`]. Out: a [`report::Report`]. Invariant: all systems show the same image, pulled by a real containerd and
//! mounted as a container has it; each round kills the daemon with -9 (or cuts its link) while readers compare bytes that nobody
//! read before with the same image unpacked, and starts it again as a service manager would. What a reader gets is counted, and
//! nothing of it ends the run; everybody waits for a bounded time.
//! Not here: the shim's own campaigns, which fail on a single error (`client-shim/tests/survival`, `tests/e2e/survival.rs`).

mod readers;
pub mod report;
mod system;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::bench::node::{
    NodeBenchConfig,
    content::{self, Content},
    forms, rows, ways,
};
use crate::playground::{
    PlaygroundError, Result,
    lab::Lab,
    node::{Node, Pulls},
    progress::Progress,
    site::Site,
};
use crate::relay::{LinkShape, Relay, Wire};
use crate::rivals::{self, Background, Kind, Rivals};
use report::Report;
use system::{Image, System};

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The daemon is killed with -9, and started again.
    Daemon,
    /// Its server (the others' registry) ends all connections and takes none, as one that was killed, and comes back.
    Server,
}

impl FromStr for Blow {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "daemon" => Ok(Self::Daemon),
            "server" => Ok(Self::Server),
            _ => Err(format!("{text} is neither daemon nor server")),
        }
    }
}

#[derive(Clone, Debug)]
pub struct SurvivalConfig {
    pub rounds: usize,
    pub blow: Blow,
    pub rivals: Vec<Kind>,
    /// Where `scripts/bench-peers.sh` has put their programs.
    pub peers: Option<PathBuf>,
    /// Small files of the image.
    pub files: usize,
    /// Its large file. Each round reads a part of it that nobody read before.
    pub big_bytes: u64,
}

/// Between the end of a daemon and the next start, for all of them: what stargz's makers have in their unit (`RestartSec=1`).
pub(crate) const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long a server is away.
pub(crate) const SERVER_AWAY: Duration = Duration::from_secs(3);

/// Builds everything, kills, and takes it down.
pub async fn run(config: &SurvivalConfig, progress: &Progress) -> Result<Report> {
    let lab = Lab::open(&Site::of_this_executable()?, progress).await?;
    progress.step("making the image");
    let sizes = NodeBenchConfig {
        files: config.files,
        big_bytes: config.big_bytes,
        mounts: Vec::new(),
        wide_layers: 0,
        ..NodeBenchConfig::default()
    };
    let content = Content::new(&sizes);
    let proxy = ways::proxy(&lab, &content, progress).await?;
    let link = Relay::on(&Wire::new(LinkShape::LAN), proxy.address()).map_err(PlaygroundError::io("start a relay"))?;
    let no_layers = || PlaygroundError::unexpected("mount an image", "it has no layers");
    let chain = content.image.chain_ids().pop().ok_or_else(no_layers)?;

    progress.step("pulling: unpacked");
    let plain = Node::start(
        &lab.work,
        "plain",
        Pulls::Ordinary,
        &[proxy.url()],
        (&lab.binaries.shim, ""),
    )
    .await?;
    plain.pull_image(&content::reference(content::IMAGE)).await?;
    let right = plain.mount_as_container("right", &chain).await?;
    let image = Image::of(right.path.clone(), config.files).await?;

    let mut report = Report::new(config);
    for (name, key, pulls) in [
        ("Headstart, EROFS", "erofs", Pulls::LazyKept),
        ("Headstart, FUSE tree", "fuse", Pulls::LazyFuseKept),
    ] {
        progress.step(format!("pulling: {name}"));
        let server = (lab.binaries.shim.as_path(), link.url());
        let node = Node::start(&lab.work, key, pulls, &[link.url()], (server.0, &server.1)).await?;
        node.pull_image(&content::reference(content::IMAGE)).await?;
        let system = System::new(name, node, chain, &link, &image);
        report.systems.push(system.run(config, progress).await?);
    }
    for kind in Kind::OF_ANY_IMAGE
        .into_iter()
        .filter(|kind| config.rivals.contains(kind))
    {
        match rival(kind, &lab, &content, config, &image, progress).await {
            Ok(seen) => report.systems.push(seen),
            Err(error) => report.absent.push((kind.name().to_owned(), error.to_string())),
        }
    }
    Ok(report)
}

async fn rival(
    kind: Kind,
    lab: &Lab,
    content: &Content,
    config: &SurvivalConfig,
    image: &Image,
    progress: &Progress,
) -> Result<report::Seen> {
    let dir = rivals::directory(config.peers.clone())?;
    if let Some(why) = kind.why_not(&dir) {
        return Err(PlaygroundError::unexpected("start it", why));
    }
    let name = kind.name();
    let wanted = [forms::Wanted::of_content(content, content::IMAGE)];
    let storage = forms::make(lab, &wanted, &[kind], name, &dir, progress).await?;
    let rivals = Rivals::start(&lab.work, LinkShape::LAN, &dir, &storage).await?;
    progress.step(format!("pulling: {name}"));
    let node = rivals.node(&lab.work, kind, name, Background::Off).await?;
    let facts = rivals.facts(kind, content::IMAGE).await?;
    node.pull_image(&facts.reference()).await?;
    let no_layers = || PlaygroundError::unexpected("mount an image", "it has no layers");
    let chain = facts.chain().ok_or_else(no_layers)?;
    let system = System::new(name, node, chain, rivals.source(kind).1, image);
    if !system.is_lazy() {
        return Err(PlaygroundError::unexpected("pull lazily", "there is no FUSE mount"));
    }
    system.run(config, progress).await
}

impl Image {
    async fn of(path: PathBuf, files: usize) -> Result<Self> {
        let at = path.clone();
        let tree = rows::blocking(move || rows::Tree::of(&at, files)).await?;
        Ok(Self {
            unpacked: path,
            files: tree.files(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blows_have_names() {
        assert_eq!("daemon".parse(), Ok(Blow::Daemon));
        assert_eq!("server".parse(), Ok(Blow::Server));
        assert!("both".parse::<Blow>().is_err());
    }
}
