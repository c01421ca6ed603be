//! A reader who needs what is late in a stream that flows to his node, over a link that both share: the real server, and a relay
//! before it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage};
use headstart_loadtest::relay::{Relay, Wire};
use headstart_shim::profile::state::{Progress, Telling};

use crate::support::starter::{Starter, learned, patient};
use crate::support::{Converted, noise};

/// As many as a profile takes of any image, or nearly.
const EARLY: u64 = 48;
const FILE: usize = 300 << 10;
const LATE: usize = 1 << 20;
/// Readers of the late file at once.
const READERS: usize = 4;

fn image() -> SyntheticImage {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.dir("lib", Meta::mode(0o755));
    for i in 0..EARLY {
        layer.file(format!("lib/{i:02}"), Meta::mode(0o644), noise(FILE, i));
    }
    layer.file("lib/late", Meta::mode(0o644), noise(LATE, 100));
    SyntheticImage::new(Flavor::Oci, vec![layer.finish(Compression::Gzip)])
}

fn read_early(dir: &Path) {
    for i in 0..EARLY {
        assert!(std::fs::read(dir.join(format!("lib/{i:02}"))).unwrap() == noise(FILE, i));
    }
}

/// `len` bytes of the late file at `at`, and nothing ahead of them by the kernel.
fn read_late(dir: &Path, at: usize, len: usize) {
    let late = File::open(dir.join("lib/late")).unwrap();
    rustix::fs::fadvise(&late, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut bytes = vec![0; len];
    late.read_exact_at(&mut bytes, at as u64).unwrap();
    assert!(bytes == noise(LATE, 100)[at..][..len]);
}

#[test]
fn demand_overtakes_a_stream_that_flows_and_the_stream_does_not_bring_it_again() {
    let image = image();
    let server = Converted::start(&image);
    let first = Starter::prepare(&server.url, &image, &patient());
    first.container("c1");
    read_early(&first.dirs[0]);
    read_late(&first.dirs[0], 0, LATE);
    assert_eq!(first.told("c1").trace, Telling::Posted);

    // 2 MB/s: some eight seconds for all of it, so that this thread may be late by a few. Over a slower link the readers' own
    // answers would be in the stream's way for longer than silence within a frame may last.
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let link = Relay::on(&Wire::new("2/16".parse().unwrap()), address).unwrap();
    let second = Starter::prepare_slowly(&link.url(), &image, &patient());
    let profile = learned(second.status.clone());
    second.container("c2");
    let flows = second.until("the stream flows", |p| p.received_chunks >= 2);
    assert!(flows.received_chunks < u64::from(profile.chunk_count) / 4, "{flows:?}");

    // The very last of it.
    let dir = &second.dirs[0];
    read_late(dir, LATE - 4096, 4096);
    let now = second.starts.status().remove(0);
    assert_eq!(now.progress, Progress::Streaming);
    assert!(now.received_bytes < profile.bytes / 2, "{now:?} of {profile:?}");
    std::thread::scope(|scope| {
        for at in (0..LATE).step_by(LATE / READERS) {
            scope.spawn(move || read_late(dir, at, LATE / READERS));
        }
    });
    let now = second.starts.status().remove(0);
    assert_eq!(now.progress, Progress::Streaming, "{now:?}");

    let done = second.ended();
    assert_eq!(done.progress, Progress::Done, "{done:?}");
    read_early(dir);
    read_late(dir, 0, LATE);
    let counters = second.node.counters();
    assert_eq!((counters.read_errors.get(), counters.failed_runs.get()), (0, 0));
    // Every chunk once: on the link too, which has the TOC and the like besides.
    assert_eq!(counters.fetched_bytes.get(), profile.bytes, "{done:?}");
    assert_eq!(done.late_bytes, 0);
    let moved = link.traffic().down_bytes;
    assert!(
        (profile.bytes..profile.bytes + LATE as u64 / 4).contains(&moved),
        "{moved} of {}",
        profile.bytes
    );
}
