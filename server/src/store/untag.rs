//! Forgetting tags: the one kind of fact of which an older record says something else.
//!
//! In: what stays. Out: fewer tags, and for each that went a record that says so ([`Fact::Untagged`]).
//! Invariant: such a record is durable before the row goes, and comes after every record of the tag that went: a rebuild finds no
//! older digest behind it, in whatever order packs are swept. It goes when every pack that was there when it was written
//! is gone ([`super::sweep`]), since a tag's record without a row is not moved.
//! Not here: what stays ([`super::forget`]).

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;

use super::facts::Source;
use super::forget::AT_ONCE;
use super::index::TagRow;
use super::learned::{Fact, index_fact};
use super::pack::Location;
use super::packs::Alone;
use super::{Store, StoreError, keys};

type Tag = (Source, String, BlobDigest);

impl Store {
    /// How many went; `None`: told to stop.
    pub(super) fn forget_tags(
        &self,
        needed: &HashSet<BlobDigest>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        // What a failed sync left behind is written once more by this, and not behind what is said next.
        self.commit()?;
        let mut going = self.all_tags()?;
        going.retain(|(_, _, digest)| !needed.contains(digest));
        let mut told = Vec::new();
        for tags in going.chunks(AT_ONCE) {
            self.forgetting(|asked, _, log| {
                let tags: Vec<&Tag> = tags.iter().filter(|(.., digest)| !asked.contains(digest)).collect();
                for (source, tag, _) in &tags {
                    let (source, tag) = (source.clone(), tag.clone());
                    let behind = log.pack().0;
                    append(log, &Fact::Untagged { source, tag, behind })?;
                }
                told.extend(tags);
                Ok(())
            })?;
            if !go_on() {
                // Their records count still, and are moved behind what was said.
                return Ok(None);
            }
        }
        self.commit()?;
        let mut count = 0;
        for tags in told.chunks(AT_ONCE) {
            let mut gone = Vec::new();
            count += self.forgetting(|asked, rows, log| {
                for (source, tag, said_of) in tags {
                    let Some(TagRow { fact, .. }) = self.inner.index.tag(source, tag)? else {
                        continue;
                    };
                    if fact.digest == *said_of && !asked.contains(said_of) {
                        rows.forget(keys::tag(source, tag));
                        gone.push(keys::tag(source, tag));
                        continue;
                    }
                    // Asked for meanwhile: it comes behind what was said.
                    let (source, tag) = (source.clone(), tag.clone());
                    let fact = Fact::Tag { source, tag, fact };
                    let at = append(log, &fact)?;
                    index_fact(&self.inner.index, &fact, at)?;
                }
                Ok(())
            })?;
            for key in &gone {
                self.inner.at_hand.tags.forget(key.as_slice());
            }
            if !go_on() {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }
}

pub(super) fn append(log: &mut Alone<'_>, fact: &Fact) -> Result<Location, StoreError> {
    log.append_fact(&serde_json::to_vec(fact).map_err(|_| StoreError::Encode)?)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::disk::{Disk, Op, Witness};
    use crate::store::facts::TagFact;
    use crate::store::forget::Here;

    /// While it is true, nothing can be synced.
    #[derive(Debug, Default)]
    struct Refusing(AtomicBool);

    impl Witness for Refusing {
        fn about_to(&self, op: Op<'_>) -> io::Result<()> {
            match op {
                Op::Sync(_) if self.0.load(Ordering::SeqCst) => Err(io::Error::other("a test's refusal")),
                _ => Ok(()),
            }
        }
    }

    /// The index writes to the disk when it likes: with the row gone and the record lost, an older one would be the latest.
    #[test]
    fn a_tag_is_known_until_it_is_durable_that_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let refusing = Arc::new(Refusing::default());
        let store = Store::open_on(Disk::with(refusing.clone()), dir.path(), 1 << 20).unwrap();
        let source = Source {
            upstream: "u".into(),
            repository: "r".into(),
        };
        let fact = TagFact {
            digest: BlobDigest::of(b"manifest"),
            media_type: "m".into(),
            size: 1,
            confirmed_unix_secs: 1,
        };
        store.confirm_tag(&source, "latest", &fact).unwrap();
        store.commit().unwrap();
        refusing.0.store(true, Ordering::SeqCst);
        let forget = || store.forget_facts(u64::MAX, &Here::default(), &|| true);
        assert!(forget().is_err());
        assert_eq!(store.tag(&source, "latest").unwrap(), Some(fact));
        refusing.0.store(false, Ordering::SeqCst);
        forget().unwrap().unwrap();
        assert_eq!(store.tag(&source, "latest").unwrap(), None);
    }
}
