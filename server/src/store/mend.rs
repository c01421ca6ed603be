//! Mending what an audit found.
//!
//! In: [`Finding`]s. Out: a store in which what is damaged is missing, and everything that is not damaged is still
//! there.
//! Invariant: a row goes only while it points at the damaged record; a layer that lacks something is `unconverted`,
//! durably. What the index knows and a damaged record said is written to the packs again ([`Store::restore`]) *before*
//! the damaged pack is rewritten ([`Store::rewrite_packs`], by the reclaimer's thread: one sweep at a time).
//! Not here: finding ([`super::audit`]).

mod said;

use std::io::ErrorKind;
use std::path::Path;

use headstart_layer_format::BlobDigest;

use super::audit::{Finding, Subject};
use super::facts::{Membership, Source};
use super::index::{Batch, TagRow, member_row};
use super::learned::{Fact, index_fact};
use super::pack::{PACK_HEADER_LEN, PackId};
use super::plan::Live;
use super::recover::{read_sealed, scan};
use super::sweep::Step;
use super::untag::append;
use super::{Store, StoreError, keys};
use said::Said;

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
    /// The index is rebuilt: by a server that runs, or at the next opening.
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
            Subject::Layer(layer) => self.unconvert(layer, finding.why)?,
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

    /// Writes to the packs once more what the index knows of tags (also that they are forgotten) and members, and no
    /// whole record says. How many.
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
                if said.names(&source, &digest, membership) {
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
        for (source, tag, digest) in self.all_tags()? {
            if !said.points(&source, &tag, &digest) {
                restored += 1;
                self.say_tag_again(source, tag)?;
            }
        }
        for (source, tag) in said.taken_back.into_values() {
            restored += 1;
            self.say_tag_again(source, tag)?;
        }
        self.commit()?;
        Ok(restored)
    }

    /// What the index knows of a tag, behind everything that was said of it: where it points, or that it is forgotten.
    fn say_tag_again(&self, source: Source, tag: String) -> Result<(), StoreError> {
        let index = &self.inner.index;
        self.inner.packs.alone(|log| {
            let behind = log.pack().0;
            let fact = match index.tag(&source, &tag)? {
                Some(TagRow { fact, .. }) => Fact::Tag { source, tag, fact },
                None => Fact::Untagged { source, tag, behind },
            };
            let at = append(log, &fact)?;
            index_fact(index, &fact, at)
        })
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

    /// What whole records say of members and tags. `None`: it was told to stop.
    fn said(&self, go_on: &dyn Fn() -> bool) -> Result<Option<Said>, StoreError> {
        enum Stop {
            Asked,
            Failed(StoreError),
        }
        impl From<std::io::Error> for Stop {
            fn from(error: std::io::Error) -> Self {
                Self::Failed(error.into())
            }
        }
        let mut said = Said::default();
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
                    let row = |source: &Source, tag: &str| self.inner.index.tag(source, tag);
                    said.say(fact, row).map_err(|error| Stop::Failed(error.into()))?;
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
                Err(Stop::Failed(error)) => return Err(error),
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

    /// Gives a pack up of which nothing can be read; its file, if there is one, moves to `to`. Its rows are gone
    /// already.
    pub fn set_pack_aside(&self, pack: PackId, to: &Path) -> Result<(), StoreError> {
        // Once it is sealed it stays so; before, nothing is said of it that an opening would act on.
        if pack >= self.current_pack().0 {
            let busy = std::io::Error::new(ErrorKind::ResourceBusy, "the pack is being written");
            return Err(StoreError::io("set a pack aside")(busy));
        }
        self.commit()?;
        // As a sweep does: an opening must not miss the file and distrust the index.
        let _steady = self.inner.steady_since(self.inner.index.now())?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::store::facts::TagFact;
    use crate::store::forget::Here;

    fn source() -> Source {
        Source {
            upstream: "u".into(),
            repository: "r".into(),
        }
    }

    /// A pack of its own each time.
    fn confirm(store: &Store, digest: &[u8]) -> PackId {
        let fact = TagFact {
            digest: BlobDigest::of(digest),
            media_type: "m".into(),
            size: 1,
            confirmed_unix_secs: 7,
        };
        store.confirm_tag(&source(), "t", &fact).unwrap();
        sealed(store)
    }

    fn forget(store: &Store) -> PackId {
        store
            .forget_facts(u64::MAX, &Here::default(), &|| true)
            .unwrap()
            .unwrap();
        sealed(store)
    }

    fn sealed(store: &Store) -> PackId {
        store.seal_current_pack().unwrap();
        store.commit().unwrap();
        store.sealed_packs().last().unwrap().0
    }

    /// What is known of the tag once a pack's facts were damaged and mended, without the index.
    fn known_after(dir: &Path, store: Store, damaged: PackId) -> Option<BlobDigest> {
        let path = dir.join(format!("packs/{:08}.pack", damaged.0));
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let mut count = 0;
        for begins in [&b"{\"tag\":"[..], b"{\"untagged\":"] {
            for at in (0..bytes.len()).filter(|&at| bytes[at..].starts_with(begins)) {
                file.write_all_at(b"#", at as u64).unwrap();
                count += 1;
            }
        }
        assert_eq!(count, 1, "one record in each pack");
        let before = store.tag(&source(), "t").unwrap();
        assert_eq!(store.restore(&|| true).unwrap(), 1);
        assert_eq!(store.restore(&|| true).unwrap(), 0, "once is enough");
        assert_eq!(store.rewrite_packs(&[damaged], &|| true).unwrap(), 1);
        assert_eq!(store.tag(&source(), "t").unwrap(), before);
        drop(store);
        std::fs::remove_dir_all(dir.join("index")).unwrap();
        Store::open(dir)
            .unwrap()
            .tag(&source(), "t")
            .unwrap()
            .map(|fact| fact.digest)
    }

    /// An older record says the same, and one between the two says otherwise: it was taken for said.
    #[test]
    fn a_tag_that_points_where_it_once_did_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        confirm(&store, b"first");
        confirm(&store, b"between");
        let last = confirm(&store, b"first");
        assert_eq!(known_after(dir.path(), store, last), Some(BlobDigest::of(b"first")));
    }

    #[test]
    fn a_tag_that_was_forgotten_and_is_known_anew_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        confirm(&store, b"first");
        forget(&store);
        let last = confirm(&store, b"first");
        assert_eq!(known_after(dir.path(), store, last), Some(BlobDigest::of(b"first")));
    }

    /// What took a tag back was written once, and nobody knew that it was lost.
    #[test]
    fn that_a_tag_is_forgotten_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        confirm(&store, b"first");
        let last = forget(&store);
        assert_eq!(known_after(dir.path(), store, last), None);
    }
}
