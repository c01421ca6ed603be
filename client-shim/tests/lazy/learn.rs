//! What one node's start reads, the next node has before it reads it: two nodes and the real server in this process.

use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage};
use headstart_shim::profile::PrefetchConfig;
use headstart_shim::profile::state::{Progress, Telling};

use crate::support::starter::{Starter, learned, patient, status};
use crate::support::{Converted, noise};

const SMALL: usize = 20_000;
const LARGE: usize = 3 << 20;

/// Small files beside each other and a large one; above them a layer that is small as a whole.
fn image() -> SyntheticImage {
    let mut base = LayerBuilder::new(Dialect::Pax);
    base.dir("lib", Meta::mode(0o755));
    for i in 0..60 {
        base.file(format!("lib/{i:02}"), Meta::mode(0o644), noise(SMALL, i));
    }
    base.file("lib/large", Meta::mode(0o644), noise(LARGE, 100));
    let mut app = LayerBuilder::new(Dialect::Pax);
    app.dir("app", Meta::mode(0o755));
    app.file("app/main", Meta::mode(0o644), noise(SMALL, 200));
    SyntheticImage::new(
        Flavor::Oci,
        vec![base.finish(Compression::Gzip), app.finish(Compression::Gzip)],
    )
}

/// The start of a container.
fn run(starter: &Starter, container: &str) {
    starter.container(container);
    read(starter);
}

/// What a start reads: two files that share no chunk, of the large one the beginning in order and a page, and the
/// application.
fn read(starter: &Starter) {
    use std::os::unix::fs::FileExt;
    for i in [3u64, 40] {
        let bytes = std::fs::read(starter.dirs[0].join(format!("lib/{i:02}"))).unwrap();
        assert!(bytes == noise(SMALL, i));
    }
    let large = std::fs::File::open(starter.dirs[0].join("lib/large")).unwrap();
    // As it is read, and nothing ahead of it by the kernel.
    rustix::fs::fadvise(&large, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut piece = vec![0; 256 << 10];
    for at in (0..1280 << 10).step_by(piece.len()) {
        large.read_exact_at(&mut piece, at as u64).unwrap();
        assert!(piece == noise(LARGE, 100)[at..][..piece.len()]);
    }
    let mut part = vec![0; 4096];
    large.read_exact_at(&mut part, 2 << 20).unwrap();
    assert!(part == noise(LARGE, 100)[2 << 20..][..4096]);
    assert!(std::fs::read(starter.dirs[1].join("app/main")).unwrap() == noise(SMALL, 200));
}

#[test]
fn the_second_node_waits_for_nothing_and_fetches_no_more_than_the_profile() {
    let image = image();
    let server = Converted::start(&image);
    let first = Starter::prepare(&server.url, &image, &patient());
    first.until("nobody knows anything", |p| p.progress == Progress::NoProfile);
    run(&first, "c1");
    assert!(first.node.counters().read_misses.get() > 0);
    assert_eq!(first.told("c1").trace, Telling::Posted);

    let second = Starter::prepare(&server.url, &image, &patient());
    let profile = learned(second.status.clone());
    assert_eq!(profile.starts, 1);
    let whole: u64 = second
        .status
        .layers
        .iter()
        .map(|l| l.toc.as_ref().unwrap().blob_size)
        .sum();
    assert!(profile.bytes < whole, "what was read, and not what was fetched with it");
    let done = second.ended();
    assert_eq!(done.progress, Progress::Done);
    assert_eq!(done.received_chunks, u64::from(profile.chunk_count));
    assert_eq!(done.received_bytes, profile.bytes);
    run(&second, "c2");
    let counters = second.node.counters();
    assert_eq!(counters.read_misses.get(), 0, "everything was here");
    assert_eq!(
        (counters.requests.get(), counters.fetched_bytes.get()),
        (0, profile.bytes)
    );
    // What was here before it was read is needed all the same.
    assert_eq!(second.told("c2").trace, Telling::Posted);
    assert_eq!(
        counters.fetched_bytes.get(),
        profile.bytes,
        "nor was any read a reason to fetch more"
    );
    let again = learned(status(&second.node, &server.url, &image));
    assert_eq!((again.starts, again.chunk_count), (2, profile.chunk_count));
}

#[test]
fn reads_that_the_page_cache_may_hide_are_presumed_or_nothing_is_told() {
    let image = image();
    let server = Converted::start(&image);
    let node = Starter::prepare(&server.url, &image, &patient());
    node.until("nobody knows anything", |p| p.progress == Progress::NoProfile);
    // Somebody read a file before: which of the start's reads that hides, nobody knows.
    assert!(std::fs::read(node.dirs[0].join("lib/03")).unwrap() == noise(SMALL, 3));
    run(&node, "c1");
    assert_eq!(node.told("c1").trace, Telling::NothingToTell);
    assert!(status(&node.node, &server.url, &image).profile.is_none());

    let cold = Starter::prepare(&server.url, &image, &patient());
    run(&cold, "c2");
    assert_eq!(cold.told("c2").trace, Telling::Posted);
    let profile = learned(status(&cold.node, &server.url, &image));
    // With a profile, what it names and what was read before counts as needed: a second start on a node unlearns nothing.
    cold.starts.prepared(&status(&cold.node, &server.url, &image));
    cold.until("it has what it read", |p| p.progress == Progress::Done);
    for (i, container) in (0u64..).zip(["c3", "c4", "c5"]) {
        run(&cold, container);
        // One read that is new, or there would be nothing to tell.
        let name = format!("lib/{}", 57 + i);
        assert!(std::fs::read(cold.dirs[0].join(name)).unwrap() == noise(SMALL, 57 + i));
        cold.starts.over(container);
        cold.until("it is told", |p| p.trace == Telling::Posted);
    }
    let again = learned(status(&cold.node, &server.url, &image));
    assert_eq!(again.starts, 4);
    let still: Vec<_> = again.positions().collect();
    let lost: Vec<_> = profile.positions().filter(|at| !still.contains(at)).collect();
    assert!(lost.is_empty(), "{lost:?} of {profile:?}");
}

/// A service that runs on: its start ends when it reads nothing new for a while, or has taken the time that there is.
#[test]
fn a_start_that_nobody_ends_is_told_when_it_is_quiet_or_its_time_is_up() {
    let image = image();
    for (trace_quiet_ms, trace_max_ms) in [(300, 120_000), (120_000, 1_000)] {
        let server = Converted::start(&image);
        let config = PrefetchConfig {
            trace_quiet_ms,
            trace_max_ms,
            ..patient()
        };
        let node = Starter::prepare(&server.url, &image, &config);
        run(&node, "c1");
        let told = node.until("it is told", |p| !matches!(p.trace, Telling::None | Telling::Recording));
        assert_eq!(told.trace, Telling::Posted, "{trace_quiet_ms} {trace_max_ms}");
        assert_eq!(learned(status(&node.node, &server.url, &image)).starts, 1);
    }
}

#[test]
fn a_profile_has_the_order_in_which_a_start_read() {
    let image = image();
    let server = Converted::start(&image);
    let node = Starter::prepare(&server.url, &image, &patient());
    node.container("c1");
    for (layer, name) in [(0, "lib/50"), (1, "app/main"), (0, "lib/03"), (0, "lib/30")] {
        assert!(!std::fs::read(node.dirs[layer].join(name)).unwrap().is_empty());
    }
    assert_eq!(node.told("c1").trace, Telling::Posted);
    let runs = learned(status(&node.node, &server.url, &image)).runs;
    let places: Vec<(u32, u32)> = runs.iter().map(|run| (run.layer, run.first)).collect();
    let [(0, last), (1, _), (0, first), (0, middle)] = places[..] else {
        panic!("{runs:?}");
    };
    assert!(first < middle && middle < last, "{runs:?}");
}
