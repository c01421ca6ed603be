//! Mending what an audit found.
//!
//! In: [`Finding`]s. Out: a store in which what is damaged is missing, and everything that is not damaged is still there.
//! Invariant: a row goes only while it points at the damaged record; a layer that lacks something is `unconverted`,
//! durably. What the index knows and a damaged record said is written to the packs again ([`Store::restore`]) *before*
//! the damaged pack is rewritten ([`Store::rewrite_packs`], by the reclaimer's thread: one sweep at a time).
//! Not here: finding ([`super::audit`]).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::path::Path;

use headstart_layer_format::BlobDigest;

use super::audit::{Finding, Subject};
use super::facts::{Membership, Source};
use super::index::{Batch, TagRow, member_row};
use super::learned::Fact;
use super::pack::{PACK_HEADER_LEN, PackId};
use super::plan::Live;
use super::recover::{read_sealed, scan};
use super::sweep::Step;
use super::{Store, StoreError, keys};

/// Digests in one fact, when members are written anew.
const MEMBERS_A_FACT: usize = 1000;
/// Rows read from the index at a time.
const ROWS_A_STEP: usize = 512;

/// What is left to do about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    Done,
    /// This pack is to be rewritten, after [`Store::restore`].
    Rewrite(PackId),
    /// This pack is to be set aside as a whole.
    SetAside(PackId),
    /// The index is rebuilt at the next opening.
    Reopen,
}

impl Store {
    /// Does what can be done at once.
    pub fn mend(&self, finding: &Finding) -> Result<Mended, StoreError> {
        let inner = &self.inner;
        match &finding.subject {
            Subject::Chunk(digest, at) => inner.index.forget_chunk(digest, at)?,
            Subject::Toc(digest, at) => inner.index.forget_toc_at(digest, at)?,
            Subject::State(layer, at) => {
                inner.packs.move_layer(&inner.index, layer, at)?;
                self.commit()?;
            }
            Subject::Manifest(digest, at) => {
                inner.index.forget_manifest(digest, at)?;
                inner.at_hand.manifests.forget(digest);
            }
            Subject::DiffIds(manifest, at) => inner.index.forget_diff_ids(manifest, at)?,
            Subject::Pin(target, pinned) => {
                self.append_fact(&Fact::Pin {
                    target: target.clone(),
                    pinned: *pinned,
                })?;
                self.commit()?;
            }
            Subject::Layer(layer) => self.unconvert_layer(layer, finding.why)?,
            Subject::Stretch { pack, .. } => return Ok(Mended::Rewrite(*pack)),
            Subject::Pack(pack) => {
                // One that is open still is can be read all the same.
                return match inner.packs.pack(*pack) {
                    Ok(Some(_)) => Ok(Mended::Rewrite(*pack)),
                    Ok(None) => Ok(Mended::SetAside(*pack)),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(Mended::SetAside(*pack)),
                    // It may be whole.
                    Err(error) => Err(error.into()),
                };
            }
            Subject::Row(_) => {
                inner.index.distrust();
                return Ok(Mended::Reopen);
            }
        }
        Ok(Mended::Done)
    }

    /// Writes to the packs once more what the index knows of tags and members, and no whole record says. How many.
    /// `go_on` is asked for each record that is read; told to stop, it has done nothing.
    pub fn restore(&self, go_on: &dyn Fn() -> bool) -> Result<u64, StoreError> {
        let Some(said) = self.said(go_on)? else { return Ok(0) };
        let mut restored = 0;
        let mut named: Option<(Source, Vec<BlobDigest>)> = None;
        let mut after = vec![keys::MEMBER];
        'members: loop {
            let rows = self.inner.index.rows_after(&after, ROWS_A_STEP)?;
            let Some((last, _)) = rows.last() else { break };
            after.clone_from(last);
            for (key, row) in &rows {
                let (Some(keys::MEMBER), Some((source, digest))) = (
                    key.first().copied(),
                    keys::member_from(key.get(1..).unwrap_or_default()),
                ) else {
                    break 'members;
                };
                // Of a row that does not parse the less is believed; the audit says that it is wrong.
                let membership = member_row(row).map_or(Membership::Named, |(membership, _)| membership);
                if said.contains(&member_said(&source, &digest, membership)) {
                    continue;
                }
                restored += 1;
                if membership == Membership::Served {
                    self.append_fact(&Fact::Member { source, digest })?;
                    continue;
                }
                match &mut named {
                    Some((of, digests)) if *of == source && digests.len() < MEMBERS_A_FACT => digests.push(digest),
                    _ => self.append_named(named.replace((source, vec![digest])))?,
                }
            }
        }
        self.append_named(named)?;
        for (source, tag, _) in self.all_tags()? {
            let Some(TagRow { fact, .. }) = self.inner.index.tag(&source, &tag)? else {
                continue;
            };
            if !said.contains(&tag_said(&source, &tag, &fact.digest)) {
                restored += 1;
                self.append_fact(&Fact::Tag { source, tag, fact })?;
            }
        }
        self.commit()?;
        Ok(restored)
    }

    fn append_named(&self, named: Option<(Source, Vec<BlobDigest>)>) -> Result<(), StoreError> {
        match named {
            Some((source, digests)) => self.append_fact(&Fact::Members { source, digests }),
            None => Ok(()),
        }
    }

    /// The same for the states and pins whose rows still point into a pack: its records of them cannot be read.
    pub(super) fn restore_of(&self, pack: PackId) -> Result<(), StoreError> {
        let (inner, index) = (&self.inner, &self.inner.index);
        for (target, pinned, at) in index.pins()? {
            if let (true, Ok(target)) = (at.pack == pack, serde_json::from_slice(&target)) {
                self.append_fact(&Fact::Pin { target, pinned })?;
            }
        }
        for (layer, _) in index.layers()? {
            if let Some((at, _)) = index.layer_row(&layer)?.filter(|(at, _)| at.pack == pack) {
                inner.packs.move_layer(index, &layer, &at)?;
            }
        }
        Ok(())
    }

    /// What whole records say of members and tags, as hashes: 8 bytes each. `None`: it was told to stop.
    fn said(&self, go_on: &dyn Fn() -> bool) -> Result<Option<HashSet<u64>>, StoreError> {
        enum Stop {
            Asked,
            Failed(std::io::Error),
        }
        impl From<std::io::Error> for Stop {
            fn from(error: std::io::Error) -> Self {
                Self::Failed(error)
            }
        }
        let mut said = HashSet::new();
        let (current, _) = self.current_pack();
        for (id, len) in self.audit_packs()? {
            let pack = match self.inner.packs.pack(id) {
                Ok(Some(pack)) => pack,
                // A lost pack says nothing.
                Ok(None) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let visit = |found: super::recover::Found| {
                if let Ok(fact) = serde_json::from_slice::<Fact>(&found.payload) {
                    say(&mut said, &fact);
                }
                if go_on() { Ok(()) } else { Err(Stop::Asked) }
            };
            let read = match id == current {
                true => scan(&pack, PACK_HEADER_LEN, len, false, visit),
                false => read_sealed(&pack, PACK_HEADER_LEN, len, visit),
            };
            match read {
                Ok(_) => {}
                Err(Stop::Asked) => return Ok(None),
                Err(Stop::Failed(error)) => return Err(error.into()),
            }
        }
        Ok(Some(said))
    }

    /// Moves everything that counts out of these packs and deletes them; how many. On the reclaimer's thread, or where
    /// there is none.
    pub fn rewrite_packs(&self, packs: &[PackId], go_on: &dyn Fn() -> bool) -> Result<u64, StoreError> {
        let cycle = self.cycle();
        let mut count = 0;
        for pack in packs {
            if self.current_pack().0 == *pack {
                self.seal_current_pack()?;
            }
            let swept = self.sweep_pack(&cycle, *pack, &Live::everything(), &mut |_: Step| go_on())?;
            count += u64::from(swept.is_some());
        }
        Ok(count)
    }

    /// Gives a pack up of which nothing can be read; its file, if there is one, moves to `to`. Its rows are gone already.
    pub fn set_pack_aside(&self, pack: PackId, to: &Path) -> Result<(), StoreError> {
        // Once it is sealed it stays so; before, nothing is said of it that an opening would act on.
        if pack >= self.current_pack().0 {
            let busy = std::io::Error::new(ErrorKind::ResourceBusy, "the pack is being written");
            return Err(StoreError::io("set a pack aside")(busy));
        }
        self.commit()?;
        // As a sweep does: an opening must not miss the file and distrust the index.
        let mut doom = Batch::default();
        doom.doom(pack);
        self.inner.index.apply(doom)?;
        self.inner.index.flush()?;
        self.inner
            .packs
            .set_aside(pack, to)
            .map_err(StoreError::io("set a pack aside"))?;
        let mut bury = Batch::default();
        bury.bury(pack);
        Ok(self.inner.index.apply(bury)?)
    }
}

fn say(said: &mut HashSet<u64>, fact: &Fact) {
    let mut served = |source: &Source, digest: &BlobDigest| {
        said.insert(member_said(source, digest, Membership::Served));
        said.insert(member_said(source, digest, Membership::Named));
    };
    match fact {
        Fact::Manifest(m) => {
            served(&m.source, &m.digest);
            for digest in &m.members {
                said.insert(member_said(&m.source, digest, Membership::Named));
            }
        }
        Fact::Member { source, digest } => served(source, digest),
        Fact::Members { source, digests } => {
            for digest in digests {
                said.insert(member_said(source, digest, Membership::Named));
            }
        }
        Fact::Tag { source, tag, fact } => {
            said.insert(tag_said(source, tag, &fact.digest));
        }
        Fact::Config { .. } | Fact::Untagged { .. } | Fact::Pin { .. } => {}
    }
}

fn member_said(source: &Source, digest: &BlobDigest, membership: Membership) -> u64 {
    let mut hasher = DefaultHasher::new();
    (keys::MEMBER, source, digest, membership == Membership::Served).hash(&mut hasher);
    hasher.finish()
}

fn tag_said(source: &Source, tag: &str, digest: &BlobDigest) -> u64 {
    let mut hasher = DefaultHasher::new();
    (keys::TAG, source, tag, digest).hash(&mut hasher);
    hasher.finish()
}
