//! Profiles, for the operator: what is known, taken out, put in, pinned, forgotten.
//!
//! In: image references. Out: lists, exports, what changed.
//! Invariant: an image is one that is here, and is named as everywhere else; an operator teaches with one vote, like a node,
//! but for pins, which are believed.
//! Not here: what profiles are made of ([`crate::profile`]).

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    routing::{get, post},
};
use headstart_layer_format::{api::ImageStatus, profile::Class};

use super::{AdminError, Answer, api, blocking, reference::Target, view};
use crate::{
    app::App,
    profile::{
        ProfileError,
        pins::{clean, record_in},
    },
    read::images::image_status,
    store::facts::Source,
};

/// An export at its bounds.
const EXPORT_SIZE_MAX: usize = 32 << 20;

impl From<ProfileError> for AdminError {
    fn from(error: ProfileError) -> Self {
        match error {
            ProfileError::Store(error) => Self::Store(error),
            ProfileError::Pin(_) | ProfileError::Import(_) | ProfileError::Trace(_) => Self::Bad(error.to_string()),
            ProfileError::Busy | ProfileError::NotReady | ProfileError::Catalog(_) => Self::Profile(error),
        }
    }
}

pub fn routes() -> Router<App> {
    Router::new()
        .route(api::PROFILES, get(list))
        .route(api::PROFILE, post(export))
        .route(api::PROFILE_IMPORT, post(import))
        .route(api::PROFILE_PIN, post(pin))
        .route(api::PROFILE_UNPIN, post(unpin))
        .route(api::PROFILE_FORGET, post(forget))
        .layer(DefaultBodyLimit::max(EXPORT_SIZE_MAX))
}

async fn list(State(app): State<App>, Query(page): Query<api::Page>) -> Answer<api::List<api::Profile>> {
    blocking(move || {
        let mut rows = app.profiles.list();
        rows.sort_by_key(|(_, _, row)| std::cmp::Reverse(row.used_unix_ms));
        let (count, bytes) = (rows.len(), rows.iter().map(|(_, _, row)| row.bytes).sum());
        let profiles = rows
            .into_iter()
            .take(page.limit())
            .map(|(config, class, row)| api::Profile {
                repositories: row
                    .sources
                    .iter()
                    .map(|s| format!("{}/{}", s.upstream, s.repository))
                    .collect(),
                config,
                class,
                starts: row.starts,
                nodes: row.nodes,
                learned_unix_ms: row.learned_unix_ms,
                used_unix_ms: row.used_unix_ms,
                bytes: row.bytes,
            });
        let items = profiles.collect();
        Ok(api::List { items, count, bytes })
    })
    .await
}

async fn export(State(app): State<App>, Json(what): Json<api::ProfileOf>) -> Answer<api::ProfileShown> {
    let class = parse_class(what.class.as_deref())?;
    let status = status(&app, &what.image).await?;
    blocking(move || {
        let found = app.profiles.export(&status, &class)?;
        let nothing = || AdminError::Unknown(format!("a profile of {}", what.image));
        let (answer, export) = found.ok_or_else(nothing)?;
        let mut profile = answer.profile.clone();
        profile.runs.clear();
        Ok(api::ProfileShown {
            manifest: status.manifest_digest,
            profile,
            export,
        })
    })
    .await
}

async fn import(State(app): State<App>, Json(what): Json<api::ProfileImport>) -> Answer<api::Changed> {
    let status = status(&app, &what.image).await?;
    blocking(move || {
        let changed = app.profiles.import(&status, &what.export)?;
        Ok(api::Changed { changed })
    })
    .await
}

async fn pin(State(app): State<App>, Json(what): Json<api::ProfilePin>) -> Answer<api::ProfilePinned> {
    blocking(move || set_pins(&app, &what, true)).await
}

async fn unpin(State(app): State<App>, Json(what): Json<api::ProfilePin>) -> Answer<api::ProfilePinned> {
    blocking(move || set_pins(&app, &what, false)).await
}

async fn forget(State(app): State<App>, Json(what): Json<api::ProfileOf>) -> Answer<api::ProfileForgotten> {
    let status = status(&app, &what.image).await?;
    blocking(move || {
        let classes = app.profiles.forget(&status.config_digest);
        Ok(api::ProfileForgotten { classes })
    })
    .await
}

fn set_pins(app: &App, what: &api::ProfilePin, pinned: bool) -> Result<api::ProfilePinned, AdminError> {
    let source = source(app, &what.image)?;
    let mut paths = what.paths.clone();
    if let Some(record) = &what.record {
        paths.extend(record_in(record).map_err(ProfileError::from)?);
    }
    // One that cannot be a path is somebody's mistake, and nothing of the list is taken.
    for path in &paths {
        clean(path).map_err(ProfileError::from)?;
    }
    let changed = app.profiles.pin(&source, &paths, pinned)?;
    Ok(api::ProfilePinned {
        repository: format!("{}/{}", source.upstream, source.repository),
        changed,
        paths: app.profiles.pinned(&source),
    })
}

/// Pins are a repository's; its tag does not matter.
fn source(app: &App, image: &str) -> Result<Source, AdminError> {
    match Target::parse(image, &app.upstreams)? {
        Target::Image { source, .. } => Ok(source),
        Target::Digest(_) => Err(AdminError::Bad(format!("pin files of {image}: it names no repository"))),
    }
}

fn parse_class(text: Option<&str>) -> Result<Class, AdminError> {
    let class = text.unwrap_or_default().parse();
    class.map_err(|error| AdminError::Bad(format!("parse the class: {error}")))
}

/// Of the one image that is meant.
async fn status(app: &App, image: &str) -> Result<ImageStatus, AdminError> {
    let (reader, text) = (app.clone(), image.to_owned());
    let Json(manifest) = blocking(move || {
        let target = Target::parse(&text, &reader.upstreams)?.pin();
        let unknown = || AdminError::Unknown(text.clone());
        let root = reader.store.target_digest(&target)?.ok_or_else(unknown)?;
        let found = view::image_layers(&reader, &root)?.map_err(|count| match count {
            0 => unknown(),
            n => AdminError::Bad(format!(
                "choose one of {text}: {n} images of it are here; name one by digest"
            )),
        })?;
        Ok(found.digest)
    })
    .await?;
    let status = image_status(&app.store, &app.layers, &manifest, Duration::ZERO).await?;
    status.ok_or_else(|| AdminError::Unknown(image.to_owned()))
}
