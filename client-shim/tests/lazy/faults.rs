//! Servers that lie, break, stall and vanish: readers get the right bytes or an error, in bounded time, never else.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::Toc;
use headstart_shim::contents::Contents;
use headstart_shim::fetch::{ChunkSink, Flights, Servers, VerifiedChunk};
use headstart_shim::layers::LazyConfig;

use crate::support::node::{DEMAND_TIMEOUT, fetch_config, lazy_config, patient_fetch};
use crate::support::{FakeServer, Fault, Item, LayerBuilder, Node, TestLayer, noise};

/// What a test allows beyond the deadline of a read: a busy machine, and the retries of the kernel (a failed read-ahead
/// is read again, page by page).
const GRACE: Duration = Duration::from_secs(20);

fn two_files() -> Arc<TestLayer> {
    LayerBuilder::new()
        .add("a", Item::file(noise(50_000, 1)))
        .add("b", Item::file(noise(50_000, 2)))
        .add("c", Item::file(noise(50_000, 3)))
        .add("s", Item::new(crate::support::What::Symlink(b"a".to_vec())))
        .build(16 << 10)
}

fn eio(path: &Path) {
    let started = Instant::now();
    let error = fs::read(path).map(|b| b.len()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(started.elapsed() < DEMAND_TIMEOUT + GRACE);
}

fn reads(path: &Path, seed: u64) -> io::Result<bool> {
    Ok(fs::read(path)? == noise(50_000, seed))
}

/// All at once: what takes long is waiting for the reader's time to be up.
#[test]
fn no_fault_gives_a_reader_wrong_bytes_and_each_heals() {
    std::thread::scope(|threads| {
        for fault in [
            Fault::WrongBytes,
            Fault::Truncate,
            Fault::Stall,
            Fault::Silence,
            Fault::Status(500),
            Fault::Status(403),
            Fault::Missing,
        ] {
            threads.spawn(move || harmless(fault));
        }
    });
}

fn harmless(fault: Fault) {
    let server = FakeServer::start();
    let layer = two_files();
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    server.fault(fault);
    eio(&dir.join("a"));
    assert!(node.counters().read_errors.get() > 0, "{fault:?}");
    if fault == Fault::WrongBytes {
        assert!(node.counters().corrupt_chunks.get() > 0);
    }
    server.fault(Fault::None);
    assert!(
        reads(&dir.join("a"), 1).unwrap(),
        "{fault:?}: the next read tries again"
    );
}

/// A kernel that takes the short read of a killed reader for the end of the file would cache zeros.
#[test]
fn a_reader_killed_while_it_waits_leaves_no_wrong_byte_behind() {
    let server = FakeServer::start();
    // Each reader is killed somewhere else, in a file of its own.
    let moments = [10, 40, 80, 120, 160, 200, 240, 280];
    let builder = moments.iter().fold(LayerBuilder::new(), |b, m| {
        b.add(format!("{m}"), Item::file(noise(3_000_000, *m)))
    });
    let layer = builder.build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    server.latency(Duration::from_millis(100));
    let mut killed = 0;
    for moment in moments {
        let mut reader = Command::new("cat")
            .arg(dir.join(moment.to_string()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        reader.kill().unwrap();
        killed += usize::from(reader.wait().unwrap().signal() == Some(libc::SIGKILL));
    }
    assert!(killed > 2, "they were in the middle of it");
    server.latency(Duration::ZERO);
    for moment in moments {
        assert!(
            fs::read(dir.join(moment.to_string())).unwrap() == noise(3_000_000, moment),
            "{moment}"
        );
    }
}

#[test]
fn a_server_without_our_layout_still_has_the_chunks() {
    let server = FakeServer::start();
    let layer = two_files();
    server.serve(&layer);
    for fault in [Fault::IgnoreRange, Fault::OtherToc] {
        let root = tempfile::tempdir().unwrap();
        let node = Node::open(root.path(), &[&server]);
        let dir = node.show(&layer);
        let before = server.list_requests();
        server.fault(fault);
        assert!(reads(&dir.join("a"), 1).unwrap(), "{fault:?}");
        assert!(server.list_requests() > before, "asked by digest instead");
        server.fault(Fault::None);
    }
}

#[test]
fn the_second_server_helps_whatever_is_wrong_with_the_first() {
    let layer = two_files();
    for fault in [
        Fault::WrongBytes,
        Fault::Truncate,
        Fault::Stall,
        Fault::Silence,
        Fault::Status(503),
        Fault::Status(404),
    ] {
        let (first, second) = (FakeServer::start(), FakeServer::start());
        first.serve(&layer);
        second.serve(&layer);
        let root = tempfile::tempdir().unwrap();
        let node = Node::open(root.path(), &[&first, &second]);
        let dir = node.show(&layer);
        assert_eq!(
            (first.toc_requests(), second.toc_requests()),
            (1, 0),
            "in order of preference"
        );
        first.fault(fault);
        assert!(reads(&dir.join("a"), 1).unwrap(), "{fault:?}");
        assert!(second.chunk_requests() > 0);
    }
    let (mut first, second) = (FakeServer::start(), FakeServer::start());
    first.down();
    second.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&first, &second]);
    assert!(reads(&node.show(&layer).join("a"), 1).unwrap());
}

/// Two servers that converted a layer apart have the same chunks in frames of other lengths: offsets of one mean nothing
/// in the other's blob, whether that says so (its TOC's digest) or not.
#[test]
fn a_server_with_other_frames_gives_right_bytes() {
    let layer = two_files();
    for admits_it in [true, false] {
        let (mut first, second) = (FakeServer::start(), FakeServer::start());
        first.serve(&layer);
        second.serve(&Arc::new(layer.with_longer_frames(admits_it)));
        let root = tempfile::tempdir().unwrap();
        let node = Node::open(root.path(), &[&first, &second]);
        let dir = node.show(&layer);
        assert_eq!(second.toc_requests(), 0);
        first.down();
        for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
            assert!(reads(&dir.join(name), seed).unwrap(), "{name}");
        }
        assert!(second.list_requests() > 0);
    }
}

/// The mount's thread may serve a last reader while the runtime goes down. It then started a fetch whose task was dropped
/// at once, under the lock that ending the fetch needs, and hung with it; so did the stop of the process.
#[test]
fn a_fetch_during_the_stop_hangs_nobody() {
    #[derive(Debug)]
    struct Nothing;
    impl ChunkSink for Nothing {
        fn has(&self, _: u32) -> bool {
            false
        }
        fn put(&self, _: VerifiedChunk) -> io::Result<()> {
            Ok(())
        }
    }
    let layer = two_files();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let servers = Servers::new(&["http://127.0.0.1:1".into()], &fetch_config()).unwrap();
    let contents = Contents::of(Path::new("/nowhere"), &layer.toc, Toc::digest(&layer.encoded));
    let flights = Flights::new(
        servers,
        contents,
        Arc::new(Nothing),
        Arc::default(),
        Arc::default(),
        runtime.handle().clone(),
    );
    runtime.shutdown_background();
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        flights.prefetch(&[0, 1], Instant::now() + DEMAND_TIMEOUT);
        done.send(()).unwrap();
    });
    wait.recv_timeout(GRACE).expect("prefetch returns");
}

#[test]
fn without_a_server_what_was_read_stays_and_the_rest_fails_until_it_is_back() {
    let mut server = FakeServer::start();
    let layer = two_files();
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    assert!(reads(&dir.join("a"), 1).unwrap());
    server.down();
    // From our cache too, not only the kernel's.
    rustix::fs::fadvise(
        fs::File::open(dir.join("a")).unwrap(),
        0,
        None,
        rustix::fs::Advice::DontNeed,
    )
    .unwrap();
    assert!(reads(&dir.join("a"), 1).unwrap());
    eio(&dir.join("b"));
    assert!(fs::symlink_metadata(dir.join("b")).is_ok(), "metadata needs no server");
    server.up();
    assert!(reads(&dir.join("b"), 2).unwrap());
    // A reader that waits while the server comes back gets its bytes, no error.
    server.down();
    let path = dir.join("c");
    let reader = std::thread::spawn(move || reads(&path, 3));
    std::thread::sleep(Duration::from_millis(500));
    server.up();
    assert!(reader.join().unwrap().unwrap());
}

#[test]
fn a_stuck_read_holds_up_nobody_else() {
    let server = FakeServer::start();
    let layer = two_files();
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    assert!(reads(&dir.join("a"), 1).unwrap());
    server.fault(Fault::Silence);
    let stuck: Vec<_> = (0..8)
        .map(|_| {
            let path = dir.join("b");
            std::thread::spawn(move || reads(&path, 2))
        })
        .collect();
    while node.counters().read_misses.get() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    // All of this is answered while "b" waits.
    rustix::fs::fadvise(
        fs::File::open(dir.join("a")).unwrap(),
        0,
        None,
        rustix::fs::Advice::DontNeed,
    )
    .unwrap();
    assert!(reads(&dir.join("a"), 1).unwrap());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
    assert_eq!(fs::read_link(dir.join("s")).unwrap(), Path::new("a"));
    assert!(!dir.join("absent").exists());
    assert!(
        stuck.iter().all(|s| !s.is_finished()),
        "answered before the stuck ones were"
    );
    server.fault(Fault::None);
    for reader in stuck {
        // Either the retry found the healed server in time, or time was up.
        match reader.join().unwrap() {
            Ok(right) => assert!(right),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EIO)),
        }
    }
    assert!(reads(&dir.join("b"), 2).unwrap());
}

/// The kernel has a number of reads under way at most; while they all wait for a server, whoever reads what is here would wait
/// with them.
#[test]
fn many_stuck_readers_hold_up_nobody_who_reads_what_is_here() {
    const STUCK: u64 = 100;
    let mut server = FakeServer::start();
    let layer = (0..STUCK)
        .fold(LayerBuilder::new().add("a", Item::file(noise(50_000, 1))), |b, i| {
            b.add(format!("missing-{i}"), Item::file(noise(50_000, 100 + i)))
        })
        .build(16 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        demand_timeout_ms: 60_000,
        ..lazy_config()
    };
    let node = Node::open_as(root.path(), &[server.url()], config, &patient_fetch()).unwrap();
    let dir = node.show(&layer);
    let here = dir.join("a");
    assert!(reads(&here, 1).unwrap());
    // From our cache, not the kernel's.
    let file = fs::File::open(&here).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    server.fault(Fault::Silence);
    let before = node.counters().read_misses.get();
    let stuck: Vec<_> = (0..STUCK)
        .map(|i| {
            let path = dir.join(format!("missing-{i}"));
            std::thread::spawn(move || reads(&path, 100 + i))
        })
        .collect();
    let begun = Instant::now();
    while node.counters().read_misses.get() < before + STUCK {
        let asked = node.counters().read_misses.get() - before;
        assert!(
            begun.elapsed() < GRACE,
            "of {STUCK} readers the kernel asked for {asked}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let (done, wait) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || done.send(reads(&here, 1)).unwrap());
    assert!(wait.recv_timeout(GRACE).expect("it waits with them").unwrap());
    reading.join().unwrap();
    assert!(
        stuck.iter().all(|s| !s.is_finished()),
        "answered before the stuck ones were"
    );
    // They ask again when their connections break.
    server.fault(Fault::None);
    server.down();
    server.up();
    for reader in stuck {
        assert!(reader.join().unwrap().unwrap());
    }
}
