//! What was forgotten, and what came back all the same: rebuilds of the index, packs swept in any order, who asks meanwhile.
//!
//! In: facts that are forgotten. Out: nothing of them, or the latest of them.
//! Not here: which facts go ([`crate::facts`]), power cuts (`src/store/crash`).

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use headstart_layer_format::{BlobDigest, ChainId};
use headstart_loadtest::corpus::Rng;
use headstart_server::store::Store;
use headstart_server::store::audit::Audited;
use headstart_server::store::facts::TagFact;
use headstart_server::store::forget::Here;
use headstart_server::store::plan::Live;

use crate::facts::{image, record};
use crate::layers::publish;
use crate::{collect, keep_all, open, rebuilt, source};

/// What a tag pointed at, one after the other.
fn tag(n: u32) -> TagFact {
    TagFact {
        digest: BlobDigest::of(&n.to_le_bytes()),
        media_type: "m".into(),
        size: 1,
        confirmed_unix_secs: 1_000 + u64::from(n),
    }
}

fn forget_all(store: &Store) {
    store
        .forget_facts(u64::MAX, &Here::default(), &|| true)
        .unwrap()
        .unwrap();
}

/// Moves what counts out of one of the sealed packs.
fn sweep(store: &Store, at: usize) {
    let (pack, _) = store.sealed_packs()[at];
    let swept = store.sweep_pack(&store.cycle(), pack, &Live::everything(), &mut |_| true);
    swept.unwrap().unwrap();
}

fn findings(store: &Store) -> usize {
    let mut found = 0;
    let mut step = |at: Audited| {
        found += usize::from(matches!(at, Audited::Found(_)));
        true
    };
    for (pack, len) in store.audit_packs().unwrap() {
        store.audit_pack(pack, len, &mut step).unwrap();
    }
    store.audit_index(&mut step).unwrap();
    found
}

/// Whether any pack has these bytes.
fn is_in_packs(dir: &Path, what: &str) -> bool {
    let packs = std::fs::read_dir(dir.join("packs")).unwrap();
    packs.into_iter().any(|pack| {
        let bytes = std::fs::read(pack.unwrap().path()).unwrap();
        bytes.windows(what.len()).any(|window| window == what.as_bytes())
    })
}

/// A tag that was forgotten and whose record went must not make way for an older record of it.
#[test]
fn a_forgotten_tag_does_not_come_back_as_it_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.confirm_tag(&source(1), "latest", &tag(1)).unwrap();
    publish(&store, "between", 0..8);
    store.seal_current_pack().unwrap();
    store.confirm_tag(&source(1), "latest", &tag(2)).unwrap();
    store.seal_current_pack().unwrap();
    store
        .forget_facts(u64::MAX, &Here::default(), &|| true)
        .unwrap()
        .unwrap();
    assert!(store.tag(&source(1), "latest").unwrap().is_none());
    // The later of the two packs goes.
    let (last, _) = *store.sealed_packs().last().unwrap();
    let cycle = store.cycle();
    store
        .sweep_pack(&cycle, last, &Live::everything(), &mut |_| true)
        .unwrap()
        .unwrap();
    drop(cycle);
    let store = rebuilt(dir.path(), store);
    let known = store.tag(&source(1), "latest").unwrap();
    assert!(known.is_none_or(|known| known == tag(2)), "it is no older one");
    // Turned, both are gone.
    store
        .forget_facts(u64::MAX, &Here::default(), &|| true)
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        collect(&store, &keep_all());
    }
    assert!(rebuilt(dir.path(), store).tag(&source(1), "latest").unwrap().is_none());
}

/// Its older record was moved behind the later one, when the pack of the older one was swept first.
#[test]
fn a_forgotten_tag_does_not_come_back_as_it_was_before_when_the_older_record_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    publish(&store, "before", 0..4);
    store.seal_current_pack().unwrap();
    let mut packs = Vec::new();
    for n in [1, 2] {
        store.confirm_tag(&source(1), "latest", &tag(n)).unwrap();
        packs.push(store.current_pack().0);
        store.seal_current_pack().unwrap();
    }
    forget_all(&store);
    for pack in packs {
        let at = store.sealed_packs().iter().position(|(id, _)| *id == pack).unwrap();
        assert_ne!(at, 0, "there is an older pack");
        sweep(&store, at);
        let known = store.tag(&source(1), "latest").unwrap();
        assert!(known.is_none());
    }
    let store = rebuilt(dir.path(), store);
    assert_eq!(store.tag(&source(1), "latest").unwrap(), None);
    assert_eq!(findings(&store), 0);
}

/// A record that takes others back goes when there are none any more.
#[test]
fn nothing_is_left_of_forgotten_tags_when_every_pack_was_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..200 {
        store.confirm_tag(&source(n % 3), &format!("t{n}"), &tag(n)).unwrap();
    }
    store.seal_current_pack().unwrap();
    forget_all(&store);
    store.commit().unwrap();
    assert!(is_in_packs(dir.path(), "untagged") && is_in_packs(dir.path(), "t199"));
    // One that is not swept may have older ones: it keeps them.
    let last = store.sealed_packs().len() - 1;
    sweep(&store, last);
    assert!(is_in_packs(dir.path(), "untagged"));
    for _ in 0..2 {
        collect(&store, &keep_all());
    }
    assert!(!is_in_packs(dir.path(), "untagged") && !is_in_packs(dir.path(), "t199"));
    let store = rebuilt(dir.path(), store);
    assert!(store.all_tags().unwrap().is_empty());
}

/// Tags that move, are forgotten and come again, packs swept in any order, rebuilds: what is known is the latest, and what was not
/// forgotten is known.
#[test]
fn tags_are_the_latest_or_forgotten_whatever_the_order_of_sweeps() {
    const TAGS: usize = 4;
    for seed in 0..16 {
        let mut rng = Rng::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let (mut latest, mut kept) = ([None; TAGS], [false; TAGS]);
        for n in 0..60 {
            let at = rng.below(TAGS as u64) as usize;
            match rng.below(8) {
                0..=2 => {
                    store.confirm_tag(&source(0), &format!("t{at}"), &tag(n)).unwrap();
                    (latest[at], kept[at]) = (Some(n), true);
                }
                3 => {
                    publish(&store, &format!("layer {n}"), n..n + 2);
                }
                4 => store.seal_current_pack().unwrap(),
                5 => {
                    forget_all(&store);
                    kept = [false; TAGS];
                }
                6 => match store.sealed_packs().len() as u64 {
                    0 => {}
                    count => sweep(&store, rng.below(count) as usize),
                },
                _ => store = rebuilt(dir.path(), store),
            }
            for at in 0..TAGS {
                let known = store.tag(&source(0), &format!("t{at}")).unwrap();
                let what = format!("seed {seed}, step {n}, tag {at}");
                assert!(known.is_some() || !kept[at], "{what}");
                assert!(known.is_none() || known == latest[at].map(tag), "{what}: {known:?}");
            }
        }
        assert_eq!(findings(&store), 0, "seed {seed}");
    }
}

/// Their manifest's record went first: a rebuild brought them back without it, and they were looked at by nobody.
#[test]
fn diff_ids_without_their_manifest_are_forgotten_with_their_pack() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (shared, _) = publish(&store, "shared", 0..2);
    let (manifest, _, config) = image(1, shared);
    let chains = ChainId::chain(&config.diff_ids);
    store.seal_current_pack().unwrap();
    store.record_manifest(&manifest).unwrap();
    let first = store.current_pack().0;
    store.seal_current_pack().unwrap();
    store.record_config(&config).unwrap();
    store.seal_current_pack().unwrap();
    let facts_of = |store: &Store| {
        let packs = store.sealed_packs().into_iter();
        packs
            .map(|(pack, len)| store.overhead(pack, len, &|| true).unwrap().facts)
            .sum::<u64>()
    };
    assert!(facts_of(&store) > 0);
    forget_all(&store);
    let at = store.sealed_packs().iter().position(|(id, _)| *id == first).unwrap();
    sweep(&store, at);
    let store = rebuilt(dir.path(), store);
    assert!(store.manifest(&manifest.digest).unwrap().is_none());
    assert!(
        store.diff_ids(&manifest.digest).unwrap().is_some(),
        "the test's premise"
    );
    assert_eq!(facts_of(&store), 0, "garbage");
    collect(&store, &keep_all());
    let check = |store: &Store| {
        assert!(store.diff_ids(&manifest.digest).unwrap().is_none());
        assert!(store.chain(&chains[1]).unwrap().is_none());
        assert_eq!(findings(store), 0);
    };
    check(&store);
    check(&rebuilt(dir.path(), store));
}

/// The manifest stayed, and was no member of its repository any more, nor was what it names: not before it was fetched again.
#[test]
fn an_image_that_is_asked_for_by_its_tag_meanwhile_keeps_its_members() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (shared, _) = publish(&store, "shared", 0..4);
    for n in 0..20 {
        record(&store, n, shared);
    }
    let (manifest, tag, _) = image(3, shared);
    let looks = AtomicU32::new(0);
    // At the last look before rows go: the tag is confirmed, and nothing is recorded, since nothing is new.
    let go_on = || {
        if looks.fetch_add(1, Ordering::SeqCst) == 19 {
            store.confirm_tag(&manifest.source, "t3", &tag).unwrap();
        }
        true
    };
    store.forget_facts(u64::MAX, &Here::default(), &go_on).unwrap().unwrap();
    assert!(looks.into_inner() > 19);
    assert_eq!(store.manifest(&manifest.digest).unwrap().as_ref(), Some(&manifest));
    for member in manifest.members.iter().chain([&manifest.digest]) {
        assert!(store.is_member(&manifest.source, member).unwrap(), "{member}");
    }
    assert!(store.manifest(&image(4, shared).0.digest).unwrap().is_none());
}

/// Whoever asks while facts are forgotten finds them, or records them.
#[test]
fn what_is_asked_for_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (shared, _) = publish(&store, "shared", 0..4);
    for n in 0..200 {
        record(&store, n, shared);
    }
    // At the last look before rows go.
    let looks = AtomicU32::new(0);
    let go_on = || {
        if looks.fetch_add(1, Ordering::SeqCst) == 200 {
            for n in [3, 150] {
                record(&store, n, shared);
            }
        }
        true
    };
    store.forget_facts(u64::MAX, &Here::default(), &go_on).unwrap().unwrap();
    assert!(looks.into_inner() > 200);
    let known: Vec<_> = (0..200)
        .filter(|n| store.manifest(&image(*n, shared).0.digest).unwrap().is_some())
        .collect();
    assert_eq!(known, [3, 150]);
    assert!(store.tag(&source(3), "t3").unwrap().is_some());
    assert!(store.is_member(&source(3), &image(3, shared).0.members[2]).unwrap());
}
