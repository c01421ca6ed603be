//! An image as a node asks about it: the state of every layer, in one answer.
//!
//! In: a manifest digest. Out: [`ImageStatus`], after a bounded wait. Invariant: layers come in the manifest's order with
//! the DiffIDs of its config, so a node can match them to chain IDs without reading the config itself. What is wrong
//! with a layer only in this image's eyes (a media type that is no tar, another DiffID than the config claims) refuses it
//! here and nowhere else: a lying image must not spoil an honest one's layer.
//! Not here: conversion ([`super::layers`]); who may ask (a later step).

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use headstart_layer_format::{
    BlobDigest, ChainId, DiffId,
    api::{ImageStatus, LayerState, LayerStatus},
    limits::LAYERS_MAX,
};

use tokio_util::sync::CancellationToken;

use super::{
    blocking::blocking,
    error::ReadError,
    layers::{Layers, is_tar_layer, unknown},
};
use crate::store::{
    Store, StoreError,
    facts::{ImageFact, LayerFact},
};

/// State of an image that this server has served; `None` for anything else, and where conversions are switched off, for an
/// image that was not converted before.
pub async fn image_status(
    store: &Store,
    layers: &Layers,
    manifest: &BlobDigest,
    wait: Duration,
) -> Result<Option<ImageStatus>, ReadError> {
    let deadline = Instant::now() + wait;
    let (reader, digest) = (store.clone(), *manifest);
    let fact = blocking(move || Ok(reader.manifest(&digest)?)).await?;
    let Some(ImageFact { config, layers: facts }) = fact.and_then(|fact| fact.image) else {
        return Ok(None);
    };
    if facts.len() > LAYERS_MAX {
        return Ok(None);
    }
    let wait = deadline.saturating_duration_since(Instant::now());
    let image = layers.next_image();
    // A node mounts an image as a whole or not at all: with one layer that it cannot have, the others are not waited for.
    let over = CancellationToken::new();
    let settled = facts.iter().map(async |fact| {
        let status = tokio::select! {
            status = settle(layers, image, fact, wait) => status?,
            () = over.cancelled() => settle(layers, image, fact, Duration::ZERO).await?,
        };
        if matches!(status.state, LayerState::Refused | LayerState::Failed) {
            over.cancel();
        }
        Ok::<_, StoreError>(status)
    });
    let settled = join_all(settled).await;
    let mut statuses = settled.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Nothing more will come of it here. A node asks its next server then, or pulls the image as any other.
    if !layers.converts() && statuses.iter().any(|status| status.state != LayerState::Ready) {
        return Ok(None);
    }
    // Asked for after the wait: the config is read while the first layers convert.
    let (reader, digest) = (store.clone(), *manifest);
    let diff_ids = match blocking(move || Ok(reader.diff_ids(&digest)?)).await? {
        Some(ids) if ids.len() == statuses.len() => Some(ids),
        _ => statuses.iter().map(|s| s.diff_id).collect::<Option<Vec<DiffId>>>(),
    };
    if let Some(ids) = diff_ids {
        for ((status, chain_id), diff_id) in statuses.iter_mut().zip(ChainId::chain(&ids)).zip(ids) {
            if status.diff_id.is_some_and(|found| found != diff_id) {
                refuse(status, "the image config names another DiffID");
            }
            status.diff_id = Some(diff_id);
            status.chain_id = Some(chain_id);
        }
    }
    Ok(Some(ImageStatus {
        manifest_digest: *manifest,
        config_digest: config,
        layers: statuses,
        // Not this room's.
        profile: None,
    }))
}

async fn settle(layers: &Layers, image: u64, fact: &LayerFact, wait: Duration) -> Result<LayerStatus, StoreError> {
    let mut status = unknown(&fact.digest);
    if !is_tar_layer(&fact.media_type) {
        refuse(&mut status, "its media type is not that of a tar layer");
    } else if let Some(settled) = layers.settle_of(image, &fact.digest, Some(fact.size), wait).await? {
        status = settled;
    }
    status.media_type = Some(fact.media_type.clone());
    status.size = Some(fact.size);
    Ok(status)
}

fn refuse(status: &mut LayerStatus, reason: &str) {
    status.state = LayerState::Refused;
    status.reason = Some(reason.to_owned());
    status.toc = None;
}
