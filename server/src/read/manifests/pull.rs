//! Before a manifest is given: whether what it names can be had, by who wants it.
//!
//! In: a manifest, and what it is wanted for. Out: it may be given, or why not.
//! Invariant: an upstream is asked about an index by the image for machines like ours, which stands for all; no
//! more than first bytes are fetched for that guess. What takes long is taken for a yes, but for a blob that is being fetched anyway.
//! Not here: asking ([`crate::read::obtainable`]).

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::timeout;

use super::{Found, Inner, Manifest, Purpose, Request};
use crate::{
    read::{
        document::{is_index, own_child},
        error::ReadError,
        obtainable::VOUCH_MAX,
        setbacks::is_upstreams_fault,
    },
    store::facts::ManifestFact,
    upstream::UpstreamError,
};

impl Inner {
    /// Before a manifest that the upstream has just given or confirmed is served.
    pub(super) async fn vouch(self: &Arc<Self>, request: &Request, found: &Found) -> Result<(), ReadError> {
        let (caller, fact) = (&request.caller, &found.fact);
        // For a pull, more than that is asked before it is given.
        let is_asked = request.purpose == Purpose::Pull && (is_index(&fact.media_type) || fact.image.is_some());
        if !is_asked && !self.obtainable.is_vouched(&fact.source, caller) {
            let ask = async {
                match self.image_of(request, fact, &found.bytes).await? {
                    Some(image) => self.obtainable.vouch(caller, &image).await,
                    None => Ok(()),
                }
            };
            timeout(VOUCH_MAX, ask).await.unwrap_or(Ok(()))?;
        }
        // Afterwards: what was just asked is not asked twice. Nor is what will be asked before a pull.
        if !is_asked {
            self.obtainable.confirm_soon(caller, fact);
        }
        Ok(())
    }

    /// Before a client is given what it will pull by.
    pub(super) async fn ready(self: &Arc<Self>, request: &Request, manifest: &Manifest) -> Result<(), ReadError> {
        let (caller, fact) = (&request.caller, &manifest.fact);
        if !is_index(&fact.media_type) {
            return match fact.image {
                Some(_) => self.obtainable.begin(caller, fact, Some(&self.layers)).await.map(drop),
                None => Ok(()),
            };
        }
        let ask = async {
            match self.image_of(request, fact, &manifest.bytes).await? {
                // Its reader may want another platform, and another image: nothing is fetched for a guess.
                Some(image) => self.obtainable.begin(caller, &image, None).await,
                None => Ok(true),
            }
        };
        let is_proven = timeout(VOUCH_MAX, ask).await.unwrap_or(Ok(false))?;
        self.obtainable.settle(caller, fact, is_proven);
        Ok(())
    }

    /// What a manifest's blobs are asked for by: itself, or of an index its child for machines like ours, which stands for
    /// all: the client most likely asks for it next. None if nothing needs to be asked, or nothing can be told. Without its
    /// image, an index is worth nothing to those who choose their mirror by it.
    async fn image_of(
        self: &Arc<Self>,
        request: &Request,
        fact: &Arc<ManifestFact>,
        bytes: &Bytes,
    ) -> Result<Option<Arc<ManifestFact>>, ReadError> {
        if !is_index(&fact.media_type) {
            return Ok(Some(fact.clone()));
        }
        // Other machines than ours may be what the cluster is made of.
        if self.obtainable.is_whole(fact).await? {
            return Ok(None);
        }
        let Some(child) = own_child(bytes) else {
            return Ok(None);
        };
        let child = match self.shelf.find(&fact.source, &child).await? {
            Some(child) => Ok(child),
            None => self.fetch_digest(request, &child, None).await,
        };
        match child {
            Ok(child) if is_index(&child.fact.media_type) => Ok(None),
            Ok(child) => Ok(Some(child.fact)),
            // Some indexes name children that were never pushed.
            Err(ReadError::Upstream(UpstreamError::NotFound { .. })) => Ok(None),
            Err(error) if is_upstreams_fault(&error) => Err(error),
            Err(_) => Ok(None),
        }
    }
}
