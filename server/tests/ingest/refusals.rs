//! Layers that are refused, and conversions that fail.
//!
//! In: bytes that end early, are others, are none, or are too many. Out: a refusal only for what really are the layer's
//! bytes; nothing published.
//! Not here: what is wrong within a tar ([`super::tars`]).

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{
    Compression, Dialect, LayerBuilder, Meta, Oracle, Rng, SyntheticImage, SyntheticLayer,
};
use headstart_server::ingest::{ConvertError, Failure, IngestConfig, Progress, convert};

use crate::tars::tar_of;
use crate::{failure, progress, refusal, room};

/// A reader that ends with an error, as a broken connection does.
pub fn broken_after(blob: &[u8], len: usize) -> impl Read + '_ {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    blob[..len].chain(Broken)
}

#[test]
fn a_truncated_layer_is_refused_only_when_those_really_are_its_bytes() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Plain] {
        let layer = SyntheticLayer::of_tar(
            SyntheticImage::seeded(6).layers[2].tar.clone(),
            compression,
            Oracle::default(),
        );
        for cut in [1, 5, 100, layer.blob.len() / 2, layer.blob.len() - 1] {
            // The plain tar without the last bytes of its trailer is still one that readers accept.
            if compression == Compression::Plain && cut > layer.blob.len() / 2 {
                continue;
            }
            let room = room();
            let short = &layer.blob[..cut];
            refusal(room.convert(&BlobDigest::of(short), short));
            // The right digest, but the connection broke or gave other bytes: nothing is known about the layer.
            assert!(matches!(
                failure(room.convert(&layer.digest, broken_after(&layer.blob, cut))),
                Failure::Read(_)
            ));
            assert!(matches!(
                failure(room.convert(&layer.digest, short)),
                Failure::DigestMismatch
            ));
            room.assert_nothing_published(&layer.digest);
            room.assert_nothing_published(&BlobDigest::of(short));
        }
    }
}

#[test]
fn wrong_bytes_are_a_failure_wherever_they_are() {
    let layer = &SyntheticImage::seeded(7).layers[0];
    let room = room();
    for at in (0..layer.blob.len()).step_by(layer.blob.len() / 40) {
        let mut wrong = layer.blob.to_vec();
        wrong[at] ^= 1;
        assert!(matches!(
            failure(room.convert(&layer.digest, &wrong[..])),
            Failure::DigestMismatch
        ));
    }
    room.assert_nothing_published(&layer.digest);
    room.convert(&layer.digest, &layer.blob[..]).unwrap();
}

#[test]
fn garbage_is_refused() {
    let room = room();
    refusal(room.convert_tar(b"{\"not\": \"a layer\"}"));
    refusal(room.convert_tar(&Rng::new(1).bytes(100_000)));
}

#[test]
fn bombs_trip_their_bound() {
    let room = room();
    let config = IngestConfig {
        ratio_floor_bytes: 1 << 20,
        ..IngestConfig::default()
    };
    let mut b = LayerBuilder::new(Dialect::Gnu);
    b.file("zeros", Meta::default(), vec![0; 16 << 20]);
    let zeros = b.finish(Compression::Gzip);
    let why = refusal(room.convert_with(&zeros.digest, &zeros.blob[..], &config));
    assert!(why.contains("for each compressed one"), "{why}");
    room.convert(&zeros.digest, &zeros.blob[..])
        .expect("below the floor it is harmless");
    let config = IngestConfig {
        tar_bytes_max: 1 << 20,
        ..IngestConfig::default()
    };
    refusal(room.convert_with(&zeros.digest, &zeros.blob[..], &config));

    let mut b = LayerBuilder::new(Dialect::Gnu);
    for i in 0..200 {
        b.file(format!("d{i}/f"), Meta::default(), "");
    }
    let many = b.finish(Compression::Gzip);
    for (what, config) in [
        (
            "entries",
            IngestConfig {
                entries_max: 300,
                ..IngestConfig::default()
            },
        ),
        (
            "beside file bodies",
            IngestConfig {
                skeleton_bytes_max: 50_000,
                ..IngestConfig::default()
            },
        ),
    ] {
        let why = refusal(room.convert_with(&many.digest, &many.blob[..], &config));
        assert!(why.contains(what), "{why}");
    }
    room.convert(&many.digest, &many.blob[..]).unwrap();

    // Members that make no entry count as well.
    let again = tar_of(&[(".wh..wh..opq", b'0', ""); 200]);
    let config = IngestConfig {
        entries_max: 150,
        ..IngestConfig::default()
    };
    let why = refusal(room.convert_with(&BlobDigest::of(&again), &again[..], &config));
    assert!(why.contains("members"), "{why}");
}

#[test]
fn a_late_or_cancelled_conversion_fails_and_says_nothing_about_the_layer() {
    let room = room();
    let layer = &SyntheticImage::tiny(2).layers[0];
    let config = IngestConfig::default();
    let late = Progress::new(Duration::ZERO);
    std::thread::sleep(Duration::from_millis(2));
    let outcome = convert(&layer.blob[..], &layer.digest, &room.store, &config, &late);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::TimedOut))));
    let cancelled = progress();
    cancelled.cancel();
    let outcome = convert(&layer.blob[..], &layer.digest, &room.store, &config, &cancelled);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::Cancelled))));
    assert_eq!(room.store.layer(&layer.digest).unwrap(), None);
}

/// The time was looked at only when compressed bytes were read. A small blob is read at once, and what it inflates to
/// may be hours of work: a million paths, each through a maze of symlinks.
#[test]
fn time_is_up_also_while_few_compressed_bytes_make_much_work() {
    struct CancelAtTheEnd<'a>(&'a [u8], &'a Progress);
    impl Read for CancelAtTheEnd<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(buf)?;
            if self.0.is_empty() {
                self.1.cancel();
            }
            Ok(n)
        }
    }
    let room = room();
    let mut b = LayerBuilder::new(Dialect::Gnu);
    b.file("zeros", Meta::default(), vec![0; 16 << 20]);
    let zeros = b.finish(Compression::Gzip);
    assert!(zeros.blob.len() < 64 << 10, "it is read at once");
    let progress = progress();
    let reader = CancelAtTheEnd(&zeros.blob, &progress);
    let outcome = convert(reader, &zeros.digest, &room.store, &IngestConfig::default(), &progress);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::Cancelled))));
    let scanned = progress.tar.load(Ordering::Relaxed);
    assert!(
        scanned < 1 << 20,
        "{scanned} bytes were scanned after the end was asked for"
    );
}
