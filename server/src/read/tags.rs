//! Lists of tags.
//!
//! In: a source and where to begin. Out: a sorted piece of its tags.
//! Invariant: the upstream's list, kept for `fetch.listing_ttl_ms`, and served stale when the upstream is in trouble, also
//! after a restart (the beginning). Where it was never read, the tags that passed through here are listed while the upstream
//! is away, marked as a part; never where it only asks for patience.
//! Not here: paging of clients (`http/v2_tags.rs`), and where tags point ([`super::manifests`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    blocking::blocking,
    error::ReadError,
    kept::{Kept, Named, Told},
    negative::{Negative, What},
    saved::Saved,
};
use crate::{
    store::{Store, facts::Source},
    upstream::{Caller, UpstreamError, Upstreams},
};

/// All lists together. A thousand tags have some 40 KiB.
const BYTES_MAX: u64 = 64 << 20;

/// Tags of our own that an offline server lists.
const OWN_TAGS_MAX: usize = 65_536;

/// A piece of the sorted list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TagList {
    /// Ascending, without doubles.
    pub tags: Vec<String>,
    /// The upstream has more than this; what follows begins after the last.
    pub more: bool,
}

/// A list to serve.
#[derive(Clone, Debug)]
pub struct Listed {
    pub list: Arc<TagList>,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Fresh,
    /// The upstream could not be asked.
    Stale,
    /// Nor was it ever: these are the tags that were pulled.
    Partial,
}

/// Who asked for what; the list that begins after `last`.
type Key = (Source, Caller, Option<String>);

impl Named for Key {
    /// Beginnings only: a client can go on from anywhere, and of each place there would be a file.
    fn name(&self) -> Option<String> {
        let (source, caller, after) = self;
        if after.is_some() {
            return None;
        }
        let name = ("tags", caller.lasting_name()?, source, None::<&str>);
        serde_json::to_string(&name).ok()
    }

    fn weight(&self) -> usize {
        self.2.as_ref().map_or(0, String::len)
    }
}

/// All lists; clones share them.
#[derive(Clone, Debug)]
pub struct TagLists {
    kept: Kept<Key, TagList>,
    negative: Negative,
    upstreams: Upstreams,
    store: Store,
}

impl TagLists {
    pub fn new(upstreams: Upstreams, store: Store, negative: Negative, saved: Saved, ttl: Duration) -> Self {
        Self {
            kept: Kept::new(ttl, BYTES_MAX, saved, |list| {
                list.tags.iter().map(|tag| tag.len() + 24).sum()
            }),
            negative,
            upstreams,
            store,
        }
    }

    /// A piece of the list that has what follows `last` in it, if anything follows. Not to be waited for beyond `by`.
    pub async fn get(
        &self,
        by: Instant,
        source: &Source,
        caller: &Caller,
        last: Option<&str>,
    ) -> Result<Listed, ReadError> {
        let first = self.piece(by, source, caller, None).await?;
        let covers = |list: &TagList| !list.more || list.tags.last().is_some_and(|end| last < Some(end.as_str()));
        match last {
            Some(last) if !covers(&first.list) => self.piece(by, source, caller, Some(last)).await,
            _ => Ok(first),
        }
    }

    async fn piece(
        &self,
        by: Instant,
        source: &Source,
        caller: &Caller,
        after: Option<&str>,
    ) -> Result<Listed, ReadError> {
        if let Some(no) = self.negative.get(source, caller, &What::Tags) {
            return Err(no.into());
        }
        let upstream = self.upstreams.get(&source.upstream).cloned();
        let upstream = upstream.ok_or(UpstreamError::NotFound { name_unknown: true })?;
        let key = (source.clone(), caller.clone(), after.map(str::to_owned));
        let answer = self.kept.get(by, &key, || {
            let (source, caller, after) = key.clone();
            async move {
                let page = upstream.tags(&source.repository, &caller, after.as_deref()).await?;
                let mut tags = page.tags;
                tags.sort_unstable();
                tags.dedup();
                // Of a repository without tags, which some upstreams say of any, there is nothing to lose.
                let lasts = !tags.is_empty();
                let list = TagList { tags, more: page.more };
                Ok(Told { list, lasts })
            }
        });
        match answer.await {
            Ok((list, stale)) => Ok(Listed {
                list,
                how: if stale { How::Stale } else { How::Fresh },
            }),
            Err(ReadError::Upstream(error)) if is_away(&error) => self.own(source, error).await,
            Err(error) => {
                if let ReadError::Upstream(error) = &error {
                    self.negative.learn::<()>(source, caller, What::Tags, Err(error));
                }
                Err(error)
            }
        }
    }

    /// The tags that were pulled through here, or the upstream's trouble if there are none.
    async fn own(&self, source: &Source, error: UpstreamError) -> Result<Listed, ReadError> {
        let (store, source) = (self.store.clone(), source.clone());
        let mut tags = blocking(move || Ok(store.tags(&source, OWN_TAGS_MAX)?)).await?;
        if tags.is_empty() {
            return Err(error.into());
        }
        tags.sort_unstable();
        Ok(Listed {
            list: Arc::new(TagList { tags, more: false }),
            how: How::Partial,
        })
    }
}

/// Whether waiting a little is no help.
fn is_away(error: &UpstreamError) -> bool {
    error.is_outage() && !matches!(error, UpstreamError::TooManyRequests { .. } | UpstreamError::Busy)
}
