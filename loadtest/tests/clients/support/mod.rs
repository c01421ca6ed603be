//! What every client test begins with: a work directory, the binaries, forky.
//!
//! In: the test. Out: a [`Bench`] whose parts end with it.
//! Invariant: nothing outlives the test: processes are ended by pid, mounts are in namespaces of those processes.
//! Not here: images ([`images`]), upstreams ([`upstream`]), what a client stored ([`stored`]).

pub mod images;
pub mod stored;
pub mod upstream;

use std::{future::Future, path::PathBuf, process::Command};

use headstart_loadtest::playground::{
    PlaygroundError,
    binaries::Binaries,
    command,
    debian_tree::{DebianTree, Suite},
    proxy::Proxy,
    runtime,
    site::Site,
    tools,
    workdir::WorkDir,
};
use tokio::sync::OnceCell;

/// What a test works with.
pub struct Bench {
    pub site: Site,
    pub binaries: Binaries,
    pub work: WorkDir,
}

/// Runs the test with a bench.
pub fn with_bench<F: Future<Output = ()>>(test: impl FnOnce(Bench) -> F) {
    runtime::block_on(async {
        let bench = match Bench::open() {
            Ok(bench) => bench,
            Err(error) => panic!("failed to {error}"),
        };
        test(bench).await;
    });
}

impl Bench {
    fn open() -> Result<Bench, PlaygroundError> {
        tools::require_root()?;
        tools::require(&["skopeo", "buildah"])?;
        let site = Site::of_this_executable()?;
        Ok(Bench {
            binaries: Binaries::in_dir(&site.profile_dir)?,
            work: WorkDir::create()?,
            site,
        })
    }

    /// The tree of newer clients; made once, whoever asks first.
    pub async fn forky(&self) -> DebianTree {
        static FORKY: OnceCell<DebianTree> = OnceCell::const_new();
        let made = FORKY
            .get_or_try_init(|| DebianTree::open(Suite::Forky, &self.site, &self.work))
            .await;
        match made {
            Ok(forky) => forky.clone(),
            Err(error) => panic!("failed to {error}"),
        }
    }

    /// A server with the named upstreams, the first of which is the default one.
    pub async fn proxy(&self, name: &str, upstreams: &[(&str, &str)], more: &str) -> Proxy {
        let plain: Vec<_> = upstreams.iter().map(|(name, url)| (*name, *url, "")).collect();
        self.proxy_of(name, &plain, more).await
    }

    /// The same, where an upstream's table has further lines.
    pub async fn proxy_of(&self, name: &str, upstreams: &[(&str, &str, &str)], more: &str) -> Proxy {
        let mut rest = format!("default_upstream = \"{}\"\n", upstreams[0].0);
        for (name, url, lines) in upstreams {
            rest.push_str(&format!("\n[[upstreams]]\nname = \"{name}\"\nurl = \"{url}\"\n{lines}"));
        }
        rest.push_str(more);
        match Proxy::start_configured(&self.work, name, &self.binaries.server, &rest).await {
            Ok(proxy) => proxy,
            Err(error) => panic!("failed to {error}"),
        }
    }

    /// Runs a tool to its end; its output, or the end of its log.
    pub async fn run(&self, name: &str, tool: Command) -> Result<String, String> {
        let output = command::run(name, tool, &self.work).await;
        output
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|e| e.to_string())
    }

    /// A directory below the work directory.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.work.dir(name).unwrap()
    }
}
