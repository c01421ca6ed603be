//! What is here, for the operator's eyes.
//!
//! In: store and originals. Out: lists; and what only one image needs.
//! Invariant: reads only. Sizes are of what is here now.
//! Not here: changing anything.

use std::collections::{HashMap, HashSet};

use headstart_layer_format::BlobDigest;

use super::api::{Image, ImageLayer, ImageLayers, List, Object, Pin};
use crate::{
    app::App,
    store::{LayerRecord, StoreError, pins::PinTarget},
};

fn list<T>(mut items: Vec<T>, limit: usize, bytes: impl Fn(&T) -> u64) -> List<T> {
    let (count, bytes) = (items.len(), items.iter().map(bytes).sum());
    items.truncate(limit);
    List { items, count, bytes }
}

/// By tag; and roots that no tag points at.
pub fn images(app: &App, limit: usize) -> Result<List<Image>, StoreError> {
    let pinned = app.store.pinned()?;
    let mut names: Vec<(String, BlobDigest)> = Vec::new();
    for (source, tag, digest) in app.store.all_tags()? {
        names.push((format!("{}/{}:{tag}", source.upstream, source.repository), digest));
    }
    let tagged: HashSet<BlobDigest> = names.iter().map(|(_, digest)| *digest).collect();
    let mut below = HashSet::new();
    let mut roots = Vec::new();
    for digest in app.store.manifests()? {
        if let Some(fact) = app.store.manifest(&digest)? {
            below.extend(fact.members);
            if !tagged.contains(&digest) {
                roots.push((fact.source, digest));
            }
        }
    }
    for (source, digest) in roots {
        if !below.contains(&digest) {
            names.push((format!("{}/{}@{digest}", source.upstream, source.repository), digest));
        }
    }
    let mut seen: HashMap<BlobDigest, u64> = HashMap::new();
    let mut items = Vec::with_capacity(names.len());
    for (name, digest) in names {
        let mut image = Image {
            name,
            digest,
            bytes: 0,
            used_unix_ms: 0,
            pinned: pinned.contains(&digest),
            layers_ready: 0,
            layers_here: 0,
            layers_count: 0,
        };
        let mut layers = HashSet::new();
        for part in app.store.closure(&digest)? {
            if let Some(kept) = app.originals.kept(&part) {
                image.bytes += kept.bytes;
                image.used_unix_ms = image.used_unix_ms.max(kept.used_unix_ms);
                seen.insert(part, kept.bytes);
            }
            let of_image = app.store.manifest(&part)?.and_then(|fact| fact.image);
            layers.extend(of_image.into_iter().flat_map(|i| i.layers).map(|l| l.digest));
        }
        image.layers_count = layers.len() as u64;
        for layer in layers {
            image.layers_here += u64::from(app.originals.kept(&layer).is_some());
            if let Some(LayerRecord::Ready { .. }) = app.store.layer(&layer)? {
                image.layers_ready += 1;
                image.used_unix_ms = image.used_unix_ms.max(app.store.layer_used_ms(&layer)?);
            }
        }
        if image.bytes > 0 || image.layers_ready > 0 {
            items.push(image);
        }
    }
    items.sort_by(|a, b| (b.used_unix_ms, &a.name).cmp(&(a.used_unix_ms, &b.name)));
    let mut out = list(items, limit, |_| 0);
    // Images share layers; each byte counts once.
    out.bytes = seen.values().sum();
    Ok(out)
}

pub fn blobs(app: &App, limit: usize) -> Result<List<Object>, StoreError> {
    let pinned = app.store.pinned()?;
    let kept = app.originals.usage().oldest_first();
    let (count, bytes) = (kept.len(), kept.iter().map(|k| k.bytes).sum());
    let mut items = Vec::new();
    for kept in kept.into_iter().rev().take(limit) {
        let is_manifest = app.store.manifest(&kept.digest)?.is_some();
        items.push(Object {
            digest: kept.digest,
            bytes: kept.bytes,
            used_unix_ms: kept.used_unix_ms,
            pinned: pinned.contains(&kept.digest),
            state: if is_manifest { "manifest" } else { "blob" }.into(),
        });
    }
    Ok(List { items, count, bytes })
}

pub fn layers(app: &App, limit: usize) -> Result<List<Object>, StoreError> {
    let pinned = app.store.pinned()?;
    let mut items = Vec::new();
    for (digest, record) in app.store.layers()? {
        let (state, bytes, used_unix_ms) = match record {
            LayerRecord::Ready { toc, .. } => ("ready", toc.size + toc.blob_size, app.store.layer_used_ms(&digest)?),
            LayerRecord::Refused { .. } => ("refused", 0, 0),
            LayerRecord::Unconverted => ("unconverted", 0, 0),
        };
        items.push(Object {
            digest,
            bytes,
            used_unix_ms,
            pinned: pinned.contains(&digest),
            state: state.into(),
        });
    }
    items.sort_by_key(|o| (std::cmp::Reverse(o.used_unix_ms), o.digest));
    Ok(list(items, limit, |o| o.bytes))
}

pub fn pins(app: &App, limit: usize) -> Result<List<Pin>, StoreError> {
    let mut seen = HashMap::new();
    let mut items = Vec::new();
    for target in app.store.pins()? {
        let digest = app.store.target_digest(&target)?;
        let mut pin = Pin {
            target: match target {
                PinTarget::Digest(digest) => digest.to_string(),
                PinTarget::Tag { source, tag } => format!("{}/{}:{tag}", source.upstream, source.repository),
            },
            digest,
            bytes: 0,
        };
        if let Some(digest) = digest {
            for part in app.store.closure(&digest)? {
                if let Some(kept) = app.originals.kept(&part) {
                    pin.bytes += kept.bytes;
                    seen.insert(part, kept.bytes);
                }
            }
        }
        items.push(pin);
    }
    items.sort_by(|a, b| a.target.cmp(&b.target));
    let mut out = list(items, limit, |_| 0);
    // Images share layers; each byte counts once.
    out.bytes = seen.values().sum();
    Ok(out)
}

/// The layers of the image `root`; of an index, those of the image in it that is here whole. `Err`: how many such there are.
pub fn image_layers(app: &App, root: &BlobDigest) -> Result<Result<ImageLayers, usize>, StoreError> {
    let Some(fact) = app.store.manifest(root)? else {
        return Ok(Err(0));
    };
    let mut images = Vec::new();
    match fact.image {
        Some(image) => images.push((*root, image)),
        None => {
            for member in fact.members {
                let image = app.store.manifest(&member)?.and_then(|fact| fact.image);
                images.extend(image.map(|image| (member, image)));
            }
        }
    }
    let here = |digest: &BlobDigest| app.originals.kept(digest).is_some();
    if images.len() > 1 {
        images.retain(|(_, image)| image.layers.iter().all(|layer| here(&layer.digest)));
    }
    let count = images.len();
    let Some((digest, image)) = images.pop().filter(|_| count == 1) else {
        return Ok(Err(count));
    };
    let layers = image.layers.iter().map(|layer| ImageLayer {
        digest: layer.digest,
        size: layer.size,
        here: here(&layer.digest),
    });
    let layers = layers.collect();
    Ok(Ok(ImageLayers { digest, layers }))
}

/// What would be of no use without `root`: it and everything below it, except what pins protect for another reason, or
/// what a manifest that is here, and not below it, leads to. `None`: `root` itself is needed so.
pub fn only_of(app: &App, root: &BlobDigest) -> Result<Option<HashSet<BlobDigest>>, StoreError> {
    let mut mine = app.store.closure(root)?;
    let mut others = Vec::new();
    for digest in app.store.manifests()? {
        if !mine.contains(&digest) && app.originals.kept(&digest).is_some() {
            others.push(digest);
        }
    }
    for target in app.store.pins()? {
        others.extend(app.store.target_digest(&target)?.filter(|pinned| pinned != root));
    }
    // Only what is below `root` matters; but the way there may lead over an index that is not.
    let mut needed = HashSet::new();
    while let Some(digest) = others.pop() {
        if needed.insert(digest)
            && let Some(fact) = app.store.manifest(&digest)?
        {
            others.extend(fact.members);
        }
    }
    if needed.contains(root) {
        return Ok(None);
    }
    mine.retain(|digest| !needed.contains(digest));
    Ok(Some(mine))
}
