//! Manifests by tag.
//!
//! In: a request, and its tag. Out: the manifest that the tag means, and how sure that is.
//! Invariant: a tag is answered without its upstream's word only as long as the policy says so, or when the upstream is in
//! trouble, and then marked so.
//! Not here: what a policy is ([`crate::read::policy`]), where tags are kept ([`crate::read::shelf`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;

use super::{Found, Inner, Manifest, Request, Warning};
use crate::{
    read::{accept::Accept, error::ReadError, negative::What, policy::Policy, shelf},
    store::facts::{ManifestFact, Source},
    upstream::{Tag, UpstreamError},
};

impl Inner {
    /// Without asking anybody where the tag points, if it may be believed.
    pub(super) async fn by_fresh_tag(&self, request: &Request, tag: &Tag) -> Result<Option<Manifest>, ReadError> {
        let policy = self.policies.of(&request.source.upstream);
        let Some((digest, true)) = self.last(request, tag, &policy).await? else {
            return Ok(None);
        };
        let Some(found) = self.shelf.find(&request.source, &digest).await? else {
            return Ok(None);
        };
        self.obtainable
            .check(&request.caller, &found.fact, request.way(), None)
            .await?;
        Ok(Some(self.hand_out(request, found, None).await?))
    }

    pub(super) async fn by_tag(self: &Arc<Self>, request: &Request, tag: &Tag) -> Result<Manifest, ReadError> {
        let Request { source, caller, .. } = request;
        let policy = self.policies.of(&source.upstream);
        let last = self.last(request, tag, &policy).await?;
        if let Some((digest, true)) = last
            && let Some(found) = self.shelf.find(source, &digest).await?
        {
            self.obtainable.check(caller, &found.fact, request.way(), None).await?;
            return self.hand_out(request, found, None).await;
        }
        let last = last.map(|(digest, _)| digest);
        let what = What::Manifest(request.reference.clone(), request.accept.class());
        let answer = match self.negative.get(source, caller, &what) {
            Some(no) => Err(no.into()),
            None => {
                let answer = self.revalidate(request, tag, last.as_ref()).await;
                self.learn(source, caller, what, &answer);
                answer
            }
        };
        match answer {
            Ok(found) => {
                self.vouch(request, &found).await?;
                self.hand_out(request, found, None).await
            }
            Err(ReadError::Upstream(error)) => self.in_spite(request, tag, last, error, &policy).await,
            Err(error) => Err(error),
        }
    }

    /// What the tag meant last, where the policy allows that although its upstream has not answered by now, or was not asked.
    pub(super) async fn without_answer(
        &self,
        request: &Request,
        tag: &Tag,
        why: UpstreamError,
    ) -> Result<Manifest, ReadError> {
        let policy = self.policies.of(&request.source.upstream);
        let last = self.last(request, tag, &policy).await?;
        let last = last.map(|(digest, _)| digest);
        self.in_spite(request, tag, last, why, &policy).await
    }

    /// What the tag meant last, where the policy allows that in spite of this error.
    async fn in_spite(
        &self,
        request: &Request,
        tag: &Tag,
        last: Option<BlobDigest>,
        error: UpstreamError,
        policy: &Policy,
    ) -> Result<Manifest, ReadError> {
        let source = &request.source;
        let Some(warning) = in_spite_of(&error, policy) else {
            return Err(error.into());
        };
        let found = match &last {
            Some(digest) => self.shelf.find(source, digest).await?,
            None => None,
        };
        let Some(found) = found else {
            return Err(error.into());
        };
        self.obtainable
            .check(&request.caller, &found.fact, request.way(), Some(&error))
            .await?;
        tracing::warn!(
            upstream = source.upstream, repository = source.repository, tag = tag.as_str(), %error,
            "tag is served without the upstream's word"
        );
        self.hand_out(request, found, Some(warning)).await
    }

    /// Where the tag pointed last, for a client that takes as much; and whether that may be answered without asking.
    async fn last(
        &self,
        request: &Request,
        tag: &Tag,
        policy: &Policy,
    ) -> Result<Option<(BlobDigest, bool)>, ReadError> {
        let Request { source, accept, .. } = request;
        let recent = self.recent(source, tag, accept);
        let recent = recent.map(|(digest, age)| (digest, Some(age)));
        let is_fresh = |age: &Option<Duration>| age.is_some_and(|age| policy.fresh.covers(age));
        if let Some((digest, age)) = recent
            && is_fresh(&age)
        {
            return Ok(Some((digest, true)));
        }
        let stored = self.shelf.tag(source, tag).await?;
        let stored = stored
            .filter(|stored| accept.takes(&stored.media_type))
            .map(|stored| (stored.digest, shelf::age(&stored)));
        // The younger word of the two; one without a time is the older.
        let word = [recent, stored]
            .into_iter()
            .flatten()
            .min_by_key(|(_, age)| age.unwrap_or(Duration::MAX));
        Ok(word.map(|(digest, age)| (digest, is_fresh(&age))))
    }

    /// Where the tag pointed when the upstream was last asked by this process, and how long ago that was.
    pub(super) fn recent(&self, source: &Source, tag: &Tag, accept: &Accept) -> Option<(BlobDigest, Duration)> {
        let recent = self.recent.get(&(source.clone(), tag.clone(), accept.class()));
        recent.map(|(digest, at)| (digest, at.elapsed()))
    }

    /// A tag that was never seen is fetched: whatever it points at is needed. For one that is known, HEAD first: it does
    /// not count against the rate limits of the large registries, and most tags did not move.
    async fn revalidate(
        self: &Arc<Self>,
        request: &Request,
        tag: &Tag,
        last: Option<&BlobDigest>,
    ) -> Result<Found, ReadError> {
        let Request {
            source,
            caller,
            reference,
            accept,
            ..
        } = request;
        let upstream = self.upstream(source)?;
        let mut head = None;
        if last.is_some() {
            head = match upstream
                .manifest_head(&source.repository, caller, reference, &accept.headers())
                .await
            {
                Ok(head) => head.digest,
                // Some registries have no HEAD; and a HEAD cannot say whether tag or repository is unknown.
                Err(UpstreamError::Status(400..=499 | 501) | UpstreamError::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
        }
        let found = match head {
            // By digest, so that a tag that moves meanwhile cannot mix two answers.
            Some(digest) => match self.shelf.find(source, &digest).await? {
                Some(found) => found,
                None => self.fetch_digest(request, &digest, None).await?,
            },
            None => self.fetch(request, reference).await?,
        };
        self.confirm(request, tag, &found.fact).await;
        Ok(found)
    }

    async fn confirm(&self, request: &Request, tag: &Tag, fact: &ManifestFact) {
        let Request { source, accept, .. } = request;
        let key = (source.clone(), tag.clone(), accept.class());
        self.recent.insert(key, (fact.digest, Instant::now()));
        self.shelf.confirm(source, tag, accept, fact).await;
    }
}

/// Whether a tag that is known is answered although the upstream said this.
fn in_spite_of(error: &UpstreamError, policy: &Policy) -> Option<Warning> {
    match error {
        // Whoever configures that wants what is here.
        UpstreamError::Offline => Some(Warning::Stale),
        UpstreamError::NotFound { .. } => policy.serve_deleted.then_some(Warning::Deleted),
        error => (error.is_outage() && policy.stale_if_error).then_some(Warning::Stale),
    }
}
