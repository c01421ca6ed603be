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

fn append(log: &mut Alone<'_>, fact: &Fact) -> Result<Location, StoreError> {
    log.append_fact(&serde_json::to_vec(fact).map_err(|_| StoreError::Encode)?)
}
