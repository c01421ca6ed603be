//! The connection that is there before the first pull: what a quiet node's question costs, and what a server that is away does not.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage};
use headstart_loadtest::relay::{LinkShape, Relay, Wire};
use headstart_shim::fetch::{FetchConfig, Servers};
use headstart_shim::snapshotter::lazy::{LazyLayers as _, NodeLazy};
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::support::node::{lazy_config, patient_fetch};
use crate::support::starter::patient;
use crate::support::{Converted, FakeServer, Node, noise};

const SHIM: &str = env!("CARGO_BIN_EXE_headstart-shim");

fn warm(keep_warm_ms: u64) -> FetchConfig {
    FetchConfig {
        keep_warm_ms,
        ..patient_fetch()
    }
}

/// One layer, so that nothing is asked at the same time as anything else.
fn image() -> SyntheticImage {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.file("file", Meta::mode(0o644), noise(10_000, 1));
    SyntheticImage::new(Flavor::Oci, vec![layer.finish(Compression::Gzip)])
}

/// The server ends what is idle for 3 s; the node is quiet for longer than that.
#[test]
fn the_first_question_of_a_quiet_node_opens_no_connection() {
    const IDLE_MS: u64 = 3_000;
    let image = image();
    let server = Converted::start_with(&image, |config| config.http.idle_timeout_ms = IDLE_MS);
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    for keep_warm_ms in [IDLE_MS / 6, 0] {
        let relay = Relay::on(&Wire::new(LinkShape::default()), address).unwrap();
        let root = tempfile::tempdir().unwrap();
        let fetch = warm(keep_warm_ms);
        let node = Node::open_as(root.path(), &[relay.url()], lazy_config(), &fetch).unwrap();
        let servers = Servers::new(&[relay.url()], &fetch).unwrap();
        let stop = CancellationToken::new();
        node.block_on(async {
            servers.keep_warm(stop.clone());
            let lazy = NodeLazy::new(servers, Some(node.layers.clone()), true, &patient());
            let connections = || relay.traffic().connections;
            tokio::time::sleep(Duration::from_millis(2 * IDLE_MS + 500)).await;
            let before = connections();
            assert_eq!(before > 0, keep_warm_ms > 0, "{before} before anybody asked");
            // As the engine asks it, at an image's first Prepare.
            let status = lazy.image(&image.manifest_digest, 0).await.unwrap().unwrap();
            assert!(status.is_ready());
            let opened = u64::from(keep_warm_ms == 0);
            assert_eq!(connections() - before, opened, "{keep_warm_ms}");
            stop.cancel();
        });
    }
}

/// It takes connections and never says a word.
fn silent() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[test]
fn a_silent_server_holds_up_neither_the_start_nor_a_pull_that_comes_after_it_was_found_out() {
    const PATIENCE: Duration = Duration::from_secs(4);
    let (silent, _listening) = silent();
    let server = FakeServer::start();
    let manifest = BlobDigest::of(b"image");
    server.serve_image(manifest, &[]);
    let fetch = FetchConfig {
        response_timeout_ms: PATIENCE.as_millis() as u64,
        keep_warm_ms: 200,
        ..FetchConfig::default()
    };
    let servers = Servers::new(&[silent, server.url()], &fetch).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let stop = CancellationToken::new();
    runtime.block_on(async {
        let ask = async || {
            let asked = Instant::now();
            assert!(servers.image(&manifest, 0).await.unwrap().is_some());
            asked.elapsed()
        };
        let begun = Instant::now();
        servers.keep_warm(stop.clone());
        assert!(begun.elapsed() < PATIENCE / 2, "a start waits for nothing");
        // Nothing is known yet, and no more is waited for than without the keeper.
        let took = ask().await;
        assert!(took < PATIENCE * 2, "{took:?}");
        // That was a penalty of half a second; what the keeper has found is believed for as long as it finds it.
        for _ in 0..3 {
            tokio::time::sleep(PATIENCE / 2).await;
            let took = ask().await;
            assert!(took < PATIENCE / 2, "{took:?}");
        }
    });
    stop.cancel();
}

/// A shim as it is installed.
struct Shim(Child);

impl Shim {
    fn start(dir: &Path, server: &str, fetch: &str) -> Self {
        let config = format!(
            "root_dir = '{0}/root'\nsocket = '{0}/shim.sock'\nservers = ['{server}']\n[survival]\nkeep_with = 'nobody'\n[fetch]\n{fetch}\n",
            dir.display()
        );
        std::fs::write(dir.join("shim.toml"), config).unwrap();
        let mut command = Command::new(SHIM);
        command.arg("--config").arg(dir.join("shim.toml")).stderr(Stdio::null());
        let shim = Self(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(dir.join("shim.sock")).is_err() {
            assert!(Instant::now() < deadline, "the shim does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        shim
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_keeps_a_connection_if_it_is_told_to() {
    for (fetch, keeps) in [("keep_warm_ms = 20000", true), ("", false)] {
        let (url, listener) = silent();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        std::thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                counted.fetch_add(1, Ordering::SeqCst);
                // Held, as by a server that thinks.
                std::mem::forget(stream);
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim::start(dir.path(), &url, fetch);
        let deadline = Instant::now() + Duration::from_secs(if keeps { 60 } else { 3 });
        while accepted.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(accepted.load(Ordering::SeqCst) > 0, keeps, "{fetch:?}");
        drop(shim);
    }
}
