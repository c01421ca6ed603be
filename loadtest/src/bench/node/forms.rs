//! The benchmark's images in the forms that other lazy snapshotters need.
//!
//! In: the registries that have the images, the programs that `scripts/bench-peers.sh` made. Out: a registry's storage with each
//! image as gzip, with SOCI's index of it, and as eStargz.
//! Invariant: the same files in the same layers, converted by the rival's own tools as its makers say; nothing is optimised
//! for what will be read, because everything is. What the tools write is below the work directory.
//! Not here: serving them ([`crate::rivals`]).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::content::{Content, TAG};
use crate::playground::{
    PlaygroundError, Result, command,
    lab::Lab,
    node::{Node, Pulls},
    process::without_proxies,
    progress::Progress,
    registry::Registry,
    tools,
};
use crate::rivals::{Kind, program};

/// SOCI's tool leaves layers below 10 MiB to ordinary pulls. Of the benchmark's own images all are to be lazy, or there would be
/// no mounts to count; of the image with a python it does as by default.
const MIN_LAYER: [&str; 2] = ["--min-layer-size", "0"];

/// SOCI's tool has its files at a fixed place, so it gets a `/var/lib` of its own. Arguments: that, program and its arguments.
const PRIVATELY: &str = r#"mount --bind "$1" /var/lib; shift; exec "$@""#;

struct Maker<'a> {
    lab: &'a Lab,
    /// What `scripts/bench-peers.sh` made.
    dir: &'a Path,
    registry: &'a Registry,
    node: Node,
    soci_files: PathBuf,
}

/// An image, and the registry that has it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) from: String,
    pub(crate) repository: String,
    pub(crate) tag: &'static str,
    /// One of the benchmark's own.
    pub(crate) is_ours: bool,
}

impl Wanted {
    pub(crate) fn of_content(content: &Content, repository: &str) -> Self {
        let origin = content.origin.url();
        Self {
            from: origin.trim_start_matches("http://").to_owned(),
            repository: repository.to_owned(),
            tag: TAG,
            is_ours: true,
        }
    }
}

/// `name`: of what is made for it below the work directory.
pub(crate) async fn make(
    lab: &Lab,
    images: &[Wanted],
    kinds: &[Kind],
    name: &str,
    dir: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    tools::require(&["skopeo"])?;
    let storage = lab.work.dir(format!("{name}-forms"))?;
    let registry = Registry::start(&lab.work, &format!("{name}-forms-registry"), &storage, false).await?;
    let no_server = (lab.binaries.shim.as_path(), "");
    let node = format!("{name}-forms-node");
    let maker = Maker {
        lab,
        dir,
        registry: &registry,
        node: Node::start(&lab.work, &node, Pulls::Ordinary, &[registry.url()], no_server).await?,
        soci_files: lab.work.dir(format!("{name}-forms-soci"))?,
    };
    for wanted in images {
        progress.step(format!("forms of others: {}", wanted.repository));
        let image = maker.copy(wanted).await?;
        for kind in kinds {
            match kind {
                Kind::Soci => maker.index(&image, wanted.is_ours).await?,
                Kind::Stargz => maker.convert(&image, &wanted.repository).await?,
                Kind::Nydus => {
                    let why = "only scripts/bench-peers.sh does, of its own images";
                    return Err(PlaygroundError::unexpected("convert an image for Nydus", why));
                }
            }
        }
    }
    // Only clean pages can be dropped from the page cache.
    if let Ok(dir) = std::fs::File::open(&storage) {
        let _ = rustix::fs::syncfs(&dir);
    }
    Ok(storage)
}

impl Maker<'_> {
    /// As gzip, which both want; where it is that already, byte for byte. Returns its name in containerd.
    async fn copy(&self, wanted: &Wanted) -> Result<String> {
        let (from, repository, tag) = (&wanted.from, &wanted.repository, wanted.tag);
        let name = format!("{}/{repository}:{}", self.registry.address, Kind::Soci.tag());
        let mut skopeo = Command::new(tools::find("skopeo").unwrap_or_else(|| "skopeo".into()));
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
        skopeo.args(["--dest-tls-verify=false", "--dest-compress-format", "gzip"]);
        skopeo.arg(format!("docker://{from}/{repository}:{tag}"));
        skopeo.arg(format!("docker://{name}"));
        self.run("skopeo", skopeo).await?;
        self.ctr(&["content", "fetch", "--plain-http", &name]).await?;
        Ok(name)
    }

    async fn index(&self, image: &str, is_ours: bool) -> Result<()> {
        let soci = |arguments: &[&str]| {
            let mut soci = Command::new("unshare");
            soci.args(["--mount", "--", "sh", "-ec", PRIVATELY, "sh"]);
            soci.arg(&self.soci_files).arg(program(self.dir, "soci"));
            soci.arg("--address").arg(&self.node.containerd.socket);
            soci.args(["--namespace", "k8s.io"]).args(arguments).arg(image);
            soci
        };
        let create = [&["create"][..], if is_ours { &MIN_LAYER } else { &[] }].concat();
        self.run("soci", soci(&create)).await?;
        let push = ["push", "--plain-http", "--existing-index", "allow"];
        self.run("soci", soci(&push)).await
    }

    async fn convert(&self, image: &str, repository: &str) -> Result<()> {
        let to = format!("{}/{repository}:{}", self.registry.address, Kind::Stargz.tag());
        let mut convert = Command::new(program(self.dir, "ctr-remote"));
        convert.arg("--address").arg(&self.node.containerd.socket);
        convert.args(["--namespace", "k8s.io", "images", "optimize", "--no-optimize", "--oci"]);
        convert.args([image, &to]);
        self.run("ctr-remote", convert).await?;
        self.ctr(&["images", "push", "--plain-http", &to]).await
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let mut ctr = self.node.containerd.ctr();
        ctr.args(arguments);
        self.run("ctr", ctr).await
    }

    async fn run(&self, name: &str, mut tool: Command) -> Result<()> {
        without_proxies(&mut tool);
        command::run(&format!("forms-{name}"), tool, &self.lab.work)
            .await
            .map(drop)
    }
}
