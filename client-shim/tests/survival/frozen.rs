//! A server that accepts and never answers: what does not need it does not notice, however many wait for it.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use headstart_layer_format::ChainId;
use rustix::fs::{Advice, fadvise};
use tonic::Status;

use crate::node::{Kind, LONG, Node, mount_overlay};

/// Readers of missing bytes, each of a chunk of its own.
const READERS: usize = 100;
/// How long a reader waits for the server. Whoever waits with it waits as long.
const DEMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// Of a call or a read that needs no server: no machine needs as long, and far less than a reader waits.
const SOON: Duration = Duration::from_secs(8);

/// Listens where a server was, and says nothing.
fn black_hole(node: &mut Node) -> TcpListener {
    let address = node.server.url().strip_prefix("http://").unwrap().to_owned();
    node.server.down();
    let begun = Instant::now();
    loop {
        match TcpListener::bind(&address) {
            // The kernel accepts for it.
            Ok(listener) => return listener,
            Err(error) => assert!(begun.elapsed() < LONG, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A call, which does not wait.
async fn soon<T>(what: &str, call: impl Future<Output = Result<T, Status>>) -> T {
    let answer = tokio::time::timeout(SOON, call).await;
    answer.unwrap_or_else(|_| panic!("{what} waits")).unwrap()
}

/// What a container does, and does not wait for. On a thread of its own, which is left behind if it does.
fn at_once<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(SOON).unwrap_or_else(|_| panic!("{what} waits"))
}

/// From the shim or its cache, not from the kernel's.
fn read_anew(path: &Path) -> io::Result<Vec<u8>> {
    fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    fs::read(path)
}

#[test]
fn calls_and_starts_that_need_no_server_do_not_wait_for_one() {
    frozen(Kind::EROFS);
}

#[test]
fn calls_and_starts_that_need_no_server_do_not_wait_for_one_under_the_fuse_tree() {
    frozen(Kind::FUSE);
}

fn frozen(kind: Kind) {
    let mut node = Node::new(kind);
    node.demand_timeout_ms = DEMAND_TIMEOUT.as_millis() as u64;
    node.silence_timeout_ms = 2 * node.demand_timeout_ms;
    node.start();
    let chain = node.pull();
    // All of the lower layer is here: an image that is that layer alone is complete. Of the upper none is.
    let complete = ChainId::chain(&[*node.layers[0].toc.diff_id()])[0].to_string();
    node.prepare_container(&chain);
    let (here, missing): (Vec<_>, Vec<_>) = node
        .files()
        .into_iter()
        .partition(|(path, _)| path.file_name().unwrap().to_str().unwrap().starts_with('a'));
    assert_eq!((here.len(), missing.len()), (8, 8));
    for (path, expected) in &here {
        assert!(fs::read(path).unwrap() == **expected);
    }
    let _hole = black_hole(&mut node);

    // The first bytes of chunks that nobody has.
    let chunks = missing
        .iter()
        .flat_map(|(path, all)| (0..all.len() as u64).step_by(32 << 10).map(|at| (path.clone(), at)));
    let readers: Vec<_> = chunks
        .take(READERS)
        .map(|(path, at)| {
            std::thread::spawn(move || {
                let begun = Instant::now();
                let read = File::open(path).unwrap().read_exact_at(&mut [0; 4096], at);
                (read, begun.elapsed())
            })
        })
        .collect();
    assert_eq!(readers.len(), READERS);
    std::thread::sleep(Duration::from_millis(500));

    let client = node.client();
    let calls = async {
        soon("stat", client.stat(&chain)).await;
        let all = soon("walk", client.list(&[])).await;
        assert!(all.iter().any(|info| info.name == chain));
        soon("usage", client.usage(&chain)).await;
        // Another container of the image, one of the complete image, and one of an ordinary image.
        soon("prepare", client.prepare("second", &chain, &[])).await;
        soon("mounts", client.mounts("second")).await;
        soon("view", client.view("view", &chain, &[])).await;
        soon("remove", client.remove("view")).await;
        soon("remove", client.remove("second")).await;
        let complete = soon("prepare", client.prepare("of-complete", &complete, &[])).await;
        let extract = soon("prepare", client.prepare("extract-ordinary", "", &[])).await;
        fs::write(Path::new(&extract[0].source).join("program"), "ordinary").unwrap();
        soon("commit", client.commit("ordinary", "extract-ordinary", &[])).await;
        let ordinary = soon("prepare", client.prepare("of-ordinary", "ordinary", &[])).await;
        (complete, ordinary)
    };
    let (of_complete, of_ordinary) = node.runtime.block_on(calls);

    // Both are started.
    let started = |name: &'static str, options: Vec<String>| {
        let at = node.dir.path().join(name);
        fs::create_dir(&at).unwrap();
        let mounted = at.clone();
        at_once(name, move || mount_overlay(&mounted, &options));
        Mounted(at)
    };
    let complete = started("complete", of_complete[0].options.clone());
    for (path, expected) in &here {
        let path = complete.0.join(path.file_name().unwrap());
        assert!(at_once("a read of what is here", move || read_anew(&path)).unwrap() == **expected);
    }
    let ordinary = started("ordinary", of_ordinary[0].options.clone());
    let program = ordinary.0.join("program");
    assert_eq!(at_once("a read", move || fs::read(program)).unwrap(), b"ordinary");
    // The incomplete one too: everything but the bytes that are not here.
    let (path, len) = (missing[0].0.clone(), missing[0].1.len() as u64);
    assert_eq!(at_once("metadata", move || fs::metadata(path)).unwrap().len(), len);
    drop((complete, ordinary));
    let calls = async {
        for key in ["of-complete", "of-ordinary", "ordinary"] {
            soon("remove", client.remove(key)).await;
        }
        soon("cleanup", client.cleanup()).await;
    };
    node.runtime.block_on(calls);
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "nobody waited for the server"
    );

    // The kernel asks a second time when its read-ahead failed.
    for reader in readers {
        let (read, took) = reader.join().unwrap();
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(took < 2 * DEMAND_TIMEOUT + LONG, "{took:?}");
    }

    // A start with such a server: at once, and complete images run.
    node.kill();
    node.start();
    for (path, expected) in &here {
        assert!(read_anew(path).unwrap() == **expected);
    }
    node.end_container();
}

/// Unmounts.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
