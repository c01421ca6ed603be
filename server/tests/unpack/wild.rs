//! Random tars of few names.
//!
//! In: seeds. Out: every tree is containerd's, and every layer that it does not unpack is refused.
//! Not here: what the tars are made of (`headstart_loadtest::corpus::wild_tar`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use headstart_loadtest::corpus::{Dialect, Header, Meta, TarWriter, wild_tar};
use headstart_loadtest::playground::containerd::Release;

use crate::number;
use crate::runtime::{PLAIN, Runtime};

#[test]
fn random_tars_become_what_containerd_unpacks() {
    let rounds = number("HEADSTART_UNPACK_ROUNDS").unwrap_or(100);
    let seed = number("HEADSTART_UNPACK_SEED").unwrap_or(1) << 32;
    let runtime = Runtime::start(Release::Machine);
    let (unpacked, different) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    runtime.each(rounds, |round| {
        let verdicts = runtime.unpack(&wild_tar(seed + round), PLAIN);
        unpacked.fetch_add(u64::from(verdicts.unpacked()), Ordering::Relaxed);
        if let Some(difference) = verdicts.difference() {
            let found = format!("seed {}, round {round}: {difference}", seed >> 32);
            different.lock().unwrap().push(found);
        }
    });
    let (unpacked, different) = (unpacked.into_inner(), different.into_inner().unwrap());
    let first = different
        .iter()
        .take(number("HEADSTART_UNPACK_SHOW").unwrap_or(5) as usize);
    let first: Vec<_> = first.cloned().collect();
    assert!(different.is_empty(), "{} differ: {}", different.len(), first.join("\n"));
    assert!(unpacked * 5 > rounds, "only {unpacked} of {rounds} were unpacked");
}

/// A directory that no entry names is made by `mkdir`, which gives it the group of a set-group-ID directory around it; we said
/// 0. Found by seed 215501285, rounds 250, 467, 563 and 1622.
#[test]
fn what_is_made_in_a_set_group_id_directory_has_its_group() {
    let mut writer = TarWriter::new();
    let directory = |writer: &mut TarWriter, mode: u32, gid: u32| {
        let meta = Meta {
            mode,
            gid,
            ..Meta::default()
        };
        let header = Header {
            path: b"d/",
            typeflag: b'5',
            meta: &meta,
            size: 0,
            link: b"",
            device: (0, 0),
        };
        writer.entry(Dialect::Gnu, &header, b"");
    };
    let file = |writer: &mut TarWriter, path: &[u8]| writer.member(Dialect::Gnu, path, b'0', b"", b"x");
    directory(&mut writer, 0o2755, 2_097_151);
    file(&mut writer, b"d/made/within/x");
    writer.member(Dialect::Gnu, b"l", b'2', b"d", b"");
    file(&mut writer, b"l/behind/x");
    directory(&mut writer, 0o755, 5);
    file(&mut writer, b"d/later/x");
    directory(&mut writer, 0o3750, 7);
    file(&mut writer, b"d/last/x");
    let verdicts = Runtime::start(Release::Machine).unpack(&writer.finish(), PLAIN);
    assert_eq!(verdicts.difference(), None);
    let tree = verdicts.theirs.unwrap();
    let group = |path: &[u8]| tree.0[path].gid;
    assert_eq!(
        [&b"d/made"[..], b"d/made/within", b"d/behind", b"d/later", b"d/last"].map(group),
        [2_097_151, 0, 2_097_151, 0, 7]
    );
}
