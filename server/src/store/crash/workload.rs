//! What a server does to its store and its originals, a step at a time, by a seed.
//!
//! In: a seed. Out: operations, and promises: what a server would answer that it has done.
//! Invariant: a promise is made only after the store said so, and taken back before anything is done about it. Errors are
//! what a server makes of them: it goes on.
//! Not here: faults and crashes.

use std::collections::HashSet;
use std::sync::Arc;

use headstart_layer_format::{BlobDigest, ChunkDigest, toc::ChunkEntry};
use headstart_loadtest::corpus::Rng;

use super::journal::{Journal, Key};
use super::layers::{chunk_bytes, toc_of};
use super::promise;
use crate::store::audit::{Audited, Finding, Subject};
use crate::store::facts::{ManifestFact, Source, TagFact};
use crate::store::forget::Here;
use crate::store::originals::Originals;
use crate::store::pins::PinTarget;
use crate::store::plan::{Reason, Wanted};
use crate::store::{LayerRecord, Store, StoreError};

/// Things of each kind.
pub const THINGS: u32 = 9;

#[derive(Debug)]
pub struct Workload {
    rng: Rng,
    store: Store,
    originals: Originals,
    journal: Arc<Journal>,
}

pub fn layer(n: u32) -> BlobDigest {
    BlobDigest::of(format!("layer {n}").as_bytes())
}

/// Layers share chunks with the next.
pub fn chunks_of(n: u32) -> std::ops::Range<u32> {
    n * 3..n * 3 + 5
}

pub fn original(n: u32) -> Vec<u8> {
    chunk_bytes(1000 + n)
}

pub fn source() -> Source {
    Source {
        upstream: "u".into(),
        repository: "r".into(),
    }
}

pub fn fact(n: u32) -> ManifestFact {
    ManifestFact {
        source: source(),
        digest: BlobDigest::of(&original(n)),
        media_type: "m".into(),
        size: 4096,
        members: vec![layer(n)],
        foreign: Vec::new(),
        image: None,
    }
}

pub fn tag(n: u32) -> TagFact {
    TagFact {
        digest: fact(n).digest,
        media_type: "m".into(),
        size: 4096,
        confirmed_unix_secs: 7,
    }
}

pub fn pin(n: u32) -> PinTarget {
    PinTarget::Digest(layer(n))
}

/// As a conversion does it.
pub fn publish(store: &Store, n: u32) -> Result<(), StoreError> {
    let conversion = store.begin_conversion();
    let mut entries = Vec::new();
    for chunk in chunks_of(n) {
        let raw = chunk_bytes(chunk);
        let digest = ChunkDigest::of(&raw);
        let frame_len = match conversion.chunk_frame_len(&digest)? {
            Some(len) => len,
            None => {
                let frame = zstd::bulk::compress(&raw, 1).unwrap();
                conversion.append_chunk(&digest, raw.len() as u32, &frame)?.0
            }
        };
        let raw_len = raw.len() as u32;
        entries.push(ChunkEntry {
            digest,
            raw_len,
            frame_len,
        });
    }
    conversion
        .publish_layer(&layer(n), &toc_of(&layer(n), entries))
        .map(drop)
}

impl Workload {
    pub fn new(seed: u64, store: Store, originals: Originals, journal: Arc<Journal>) -> Self {
        Self {
            rng: Rng::new(seed),
            store,
            originals,
            journal,
        }
    }

    fn any(&mut self) -> u32 {
        self.rng.below(u64::from(THINGS)) as u32
    }

    pub fn step(&mut self) {
        let n = self.any();
        match self.rng.below(16) {
            0..=3 => {
                if publish(&self.store, n).is_ok() {
                    self.journal.promise(Key::Layer(n), Some(true));
                }
            }
            4 => self.evict(n),
            5 => {
                // Damage was found: whatever counts is written once more.
                let packs: Vec<_> = self.store.sealed_packs().into_iter().map(|(id, _)| id).collect();
                let pack = packs.first().copied();
                let _ = self.store.rewrite_packs(pack.as_slice(), &|| true);
            }
            6 => {
                self.journal.promise(Key::Fact(n), None);
                let told = self.store.record_manifest(&fact(n));
                let told = told.and_then(|()| self.store.confirm_tag(&source(), &format!("t{n}"), &tag(n)));
                if told.and_then(|()| self.store.commit()).is_ok() {
                    self.journal.promise(Key::Fact(n), Some(true));
                }
            }
            7 => {
                let pinned = self.rng.below(2) == 0;
                self.journal.promise(Key::Pin(n), None);
                let set = self.store.set_pin(&pin(n), pinned);
                if set.and_then(|_| self.store.commit()).is_ok() {
                    self.journal.promise(Key::Pin(n), Some(pinned));
                }
            }
            8 => {
                if self.originals.put(&BlobDigest::of(&original(n)), &original(n)).is_ok() {
                    self.journal.promise(Key::Original(n), Some(true));
                }
            }
            9 => {
                let (digest, bytes) = (BlobDigest::of(&original(n)), original(n));
                let fetched = self.originals.partial(&digest, "u").and_then(|mut partial| {
                    partial.set_size(bytes.len() as u64)?;
                    let half = bytes.len() / 2;
                    partial.write_at(&bytes[half..], half as u64)?;
                    partial.write_at(&bytes[..half], 0)?;
                    partial.mark(0)?;
                    partial.commit()
                });
                if fetched.is_ok() {
                    self.journal.promise(Key::Original(n), Some(true));
                }
            }
            10 => {
                self.journal.promise(Key::Original(n), None);
                let _ = self.originals.remove(&BlobDigest::of(&original(n)));
            }
            11 => {
                if self.store.flush().is_ok() {
                    self.journal.keep_index();
                }
            }
            12 => {
                // Every index is over a bound of nothing.
                if self.store.compact_index_over(0, &|| true).is_ok_and(|done| done) {
                    self.journal.keep_index();
                }
            }
            13 => self.find_damage(n),
            14 => {
                // As the reclaimer does it, with nothing here.
                (0..THINGS).for_each(|n| self.journal.promise(Key::Fact(n), None));
                let bytes = self.rng.below(4096);
                let _ = self.store.forget_facts(bytes, &Here::default(), &|| true);
            }
            _ => self.quarantine(n),
        }
    }

    /// As the scrubber does it that finds a chunk or a TOC damaged: its row goes, and layers that lack something are
    /// converted again.
    fn find_damage(&mut self, n: u32) {
        let chunks = chunks_of(n);
        let digest = ChunkDigest::of(&chunk_bytes(chunks.start));
        for other in (0..THINGS).filter(|other| chunks_of(*other).contains(&chunks.start)) {
            self.journal.promise(Key::Layer(other), None);
        }
        let index = &self.store.inner.index;
        let subject = match (self.rng.below(2), index.layer(&layer(n))) {
            (0, Ok(Some(LayerRecord::Ready { toc, .. }))) => match index.toc(&toc.digest) {
                Ok(Some(at)) => Subject::Toc(toc.digest, at),
                _ => return,
            },
            _ => match index.chunk(&digest) {
                Ok(Some(at)) => Subject::Chunk(digest, at),
                _ => return,
            },
        };
        let mut found = vec![Finding {
            subject,
            why: "it is damaged",
        }];
        if self.store.mend(&found[0]).is_err() {
            return;
        }
        let looked = self.store.audit_index(&mut |at| {
            if let Audited::Found(finding) = at {
                found.push(finding);
            }
            true
        });
        assert!(matches!(looked, Ok(Some(()))), "the rest is in order: {looked:?}");
        for finding in &found[1..] {
            assert!(matches!(finding.subject, Subject::Layer(_)), "{finding:?}");
            let _ = self.store.mend(finding);
        }
    }

    /// As the scrubber does it that finds an original damaged.
    fn quarantine(&mut self, n: u32) {
        self.journal.promise(Key::Original(n), None);
        let dir = self.journal.root().join("quarantine");
        std::fs::create_dir_all(&dir).unwrap();
        let digest = BlobDigest::of(&original(n));
        let place = dir.join(format!("{}-{n}", self.rng.next_u64()));
        if self.originals.take(&digest, &place).is_ok() {
            let _ = self.originals.taken(&digest);
        }
    }

    /// As the reclaimer does it, down to the last pack.
    fn evict(&mut self, n: u32) {
        self.journal.promise(Key::Layer(n), None);
        let store = &self.store;
        let wanted = Wanted {
            bytes_max: u64::MAX,
            reason: Reason::Budget,
            used_before_unix_ms: 0,
            pinned: HashSet::new(),
            removed: [layer(n)].into(),
            refusals_max: u64::MAX,
        };
        let cycle = store.cycle();
        let Ok(Some(mut plan)) = store.plan(&wanted, &|| true) else {
            return;
        };
        if store.evict(&mut plan).is_err() {
            return;
        }
        let until = self.rng.below(30);
        let mut steps = 0;
        for (pack, _) in store.sealed_packs() {
            // Now and then it is stopped in between.
            let swept = store.sweep_pack(&cycle, pack, &plan.live, &mut |_| {
                steps += 1;
                steps != until
            });
            if swept.is_err() {
                return;
            }
        }
    }

    /// What was promised is so, while it runs still.
    pub fn check_live(&self) {
        let promises = self.journal.promises(self.journal.len());
        promise::keeps(&self.store, &self.originals, &promises, "live");
    }
}
