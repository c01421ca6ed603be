//! `images/{digest}` and `chains/{id}`: what of an image is ready, and which profile it has.
//!
//! In: a manifest's digest, or a chain ID. Out: the states of its layers, as far as the client may know them.
//! Invariant: of layers that the client may not read nothing is told; the wait for a conversion is bounded by the server.
//! Not here: where states come from ([`crate::read::images`]), profiles ([`crate::http::profile`]).

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use headstart_layer_format::{
    BlobDigest, ChainId, ProfileDigest,
    api::{ChainStatus, ImageStatus, LayerState, LayerStatus},
    profile::ProfileError,
};
use http::StatusCode;

use super::{Details, blocking, digest, json};
use crate::{
    access::{Client, Named},
    app::App,
    http::{
        error::{ApiError, Asked, OciCode},
        profile,
    },
    read::images::image_status,
};

/// Layers of one image whose membership may have to be asked of an upstream at once.
const LAYERS_CHECKED_AT_ONCE: usize = 8;

pub(super) async fn image(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Path(manifest): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(details) = details?;
    let manifest: BlobDigest = digest(&manifest)?;
    let class = details.class.as_deref().unwrap_or_default().parse();
    let class = class.map_err(|e: ProfileError| ApiError::refused(StatusCode::BAD_REQUEST, e.to_string()))?;
    let known = details.profile.as_deref().map(digest::<ProfileDigest>).transpose()?;
    details.enter(&app, &client, Named::Manifest(manifest)).await?;
    let status = readable_status(&app, &client, &details, &manifest, details.wait()).await?;
    let mut status = status.ok_or_else(|| {
        ApiError::new(
            OciCode::ManifestUnknown,
            format!("no image manifest {manifest} was served here"),
        )
    })?;
    status.profile = profile::profile_of(&app, &status, class, known).await;
    Ok(json(StatusCode::OK, &status))
}

/// As far as this client may know it.
async fn readable_status(
    app: &App,
    client: &Client,
    details: &Details,
    manifest: &BlobDigest,
    wait: Duration,
) -> Result<Option<ImageStatus>, ApiError> {
    let status = image_status(&app.store, &app.layers, manifest, wait).await;
    let mut status = status.map_err(|error| ApiError::from_read(Asked::Manifest, &error))?;
    if let Some(status) = &mut status {
        refuse_unreadable(app, client, details, status).await;
    }
    Ok(status)
}

/// A manifest may name what is somebody else's: of such layers nothing is told. They are refused, so that a node does
/// not wait for them.
async fn refuse_unreadable(app: &App, client: &Client, details: &Details, image: &mut ImageStatus) {
    if app.access.allow_unknown(client).await.is_ok() {
        return;
    }
    let digests: Vec<BlobDigest> = image.layers.iter().map(|layer| layer.digest).collect();
    let checks = stream::iter(digests.into_iter().map(Named::Layer))
        .map(|layer| async move { details.enter(app, client, layer).await.is_ok() })
        .buffered(LAYERS_CHECKED_AT_ONCE);
    let allowed: Vec<bool> = checks.collect().await;
    for (layer, _) in image.layers.iter_mut().zip(allowed).filter(|(_, allowed)| !allowed) {
        *layer = LayerStatus {
            digest: layer.digest,
            state: LayerState::Refused,
            reason: Some("this client may not read it".into()),
            diff_id: None,
            chain_id: None,
            media_type: layer.media_type.take(),
            size: layer.size,
            converted: None,
            toc: None,
        };
    }
}

pub(super) async fn chain(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Path(chain): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(details) = details?;
    let chain: ChainId = digest(&chain)?;
    let store = app.store.clone();
    let Some(mut fact) = blocking(move || Ok(store.chain(&chain)?)).await? else {
        app.access
            .allow_unknown(&client)
            .await
            .map_err(|error| ApiError::from_access(Asked::Manifest, &error))?;
        let message = format!("no image with chain ID {chain} was served here");
        return Err(ApiError::new(OciCode::ManifestUnknown, message));
    };
    details
        .enter(&app, &client, Named::Layer(fact.layer))
        .await
        .map_err(|error| ApiError {
            code: match error.code {
                OciCode::BlobUnknown => OciCode::ManifestUnknown,
                code => code,
            },
            ..error
        })?;
    let mut images = Vec::new();
    for manifest in std::mem::take(&mut fact.manifests) {
        if details.enter(&app, &client, Named::Manifest(manifest)).await.is_ok() {
            images.push(manifest);
        }
    }
    let mut image = None;
    if let Some(latest) = images.first().filter(|_| details.image) {
        image = readable_status(&app, &client, &details, latest, Duration::ZERO).await?;
    }
    if let Some(status) = &mut image {
        status.profile = profile::profile_of(&app, status, Default::default(), None).await;
    }
    let status = ChainStatus {
        chain_id: fact.chain_id,
        layer_digest: fact.layer,
        diff_id: fact.diff_id,
        images,
        image,
    };
    Ok(json(StatusCode::OK, &status))
}
