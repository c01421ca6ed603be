//! What a server's answer about an image means for its layers.
//!
//! In: an [`ImageStatus`]. Out: a [`LazyImage`], every layer of which can be mounted now, or a [`Decline`].
//! Invariant: all layers or none, since containerd fetches everything above the first layer it is denied.
//! Not here: asking, waiting and remembering ([`super::decide`]).

use headstart_layer_format::{
    BlobDigest, ChainId, DiffId,
    api::{ImageStatus, LayerState},
    limits::LAYERS_MAX,
};

use super::decline::{Decline, DeclineReason};

/// An image whose layers are all ready.
#[derive(Clone, Debug)]
pub struct LazyImage {
    /// Bottom first.
    layers: Vec<LazyImageLayer>,
}

#[derive(Clone, Debug)]
struct LazyImageLayer {
    digest: BlobDigest,
    diff_id: DiffId,
    chain_id: ChainId,
}

/// The layer to present for a chain ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub layer: BlobDigest,
    pub diff_id: DiffId,
}

impl LazyImage {
    /// Decides by the state of the layers as they are in `status`.
    pub fn from_status(manifest: &BlobDigest, status: &ImageStatus) -> Result<Self, Decline> {
        if status.manifest_digest != *manifest {
            let other = status.manifest_digest;
            return Err(Decline::new(
                DeclineReason::Mismatch,
                format_args!("asked for image {manifest}, told about {other}"),
            ));
        }
        if status.layers.is_empty() || status.layers.len() > LAYERS_MAX {
            let count = status.layers.len();
            return Err(Decline::new(
                DeclineReason::Refused,
                format_args!("the image has {count} layers"),
            ));
        }
        for (state, reason) in [
            (LayerState::Refused, DeclineReason::Refused),
            (LayerState::Failed, DeclineReason::Failed),
            (LayerState::Unknown, DeclineReason::NotReady),
            (LayerState::Queued, DeclineReason::NotReady),
            (LayerState::Converting, DeclineReason::NotReady),
        ] {
            if let Some(layer) = status.layers.iter().find(|l| l.state == state) {
                let why = layer.reason.as_deref().unwrap_or("no reason given");
                let (digest, at) = (layer.digest, layer.converted.unwrap_or(0));
                let detail = format!("layer {digest} is {state:?} ({why}, {at} bytes converted)");
                return Err(Decline::new(reason, detail));
            }
        }
        let diff_ids: Option<Vec<DiffId>> = status.layers.iter().map(|l| l.diff_id).collect();
        let Some(diff_ids) = diff_ids else {
            return Err(Decline::new(
                DeclineReason::Mismatch,
                "a ready layer without a DiffID cannot be matched to a chain ID",
            ));
        };
        let chain = ChainId::chain(&diff_ids);
        let layers = status.layers.iter().zip(diff_ids).zip(chain);
        Ok(Self {
            layers: layers
                .map(|((layer, diff_id), chain_id)| LazyImageLayer {
                    digest: layer.digest,
                    diff_id,
                    chain_id,
                })
                .collect(),
        })
    }

    pub fn contains(&self, chain: &ChainId) -> bool {
        self.layers.iter().any(|l| l.chain_id == *chain)
    }

    /// The layer on top of `chain`, checked against what else is known: the digest that containerd named, and the chain
    /// ID of the parent snapshot.
    pub fn target(
        &self,
        chain: &ChainId,
        named: Option<&BlobDigest>,
        parent: Option<&ChainId>,
    ) -> Result<Target, Decline> {
        let mismatch = |detail: String| Err(Decline::new(DeclineReason::Mismatch, detail));
        let Some(layer) = self.layers.iter().find(|l| l.chain_id == *chain) else {
            return mismatch("the server's image has no layer with this chain ID".into());
        };
        if let Some(named) = named.filter(|n| **n != layer.digest) {
            let digest = layer.digest;
            return mismatch(format!("containerd names layer {named}, the server {digest}"));
        }
        if let Some(parent) = parent.filter(|p| p.push(layer.diff_id) != *chain) {
            return mismatch(format!("layer {} does not stand on parent {parent}", layer.digest));
        }
        Ok(Target {
            layer: layer.digest,
            diff_id: layer.diff_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headstart_layer_format::api::LayerStatus;

    fn status(states: &[LayerState]) -> ImageStatus {
        let layer = |(i, state): (usize, &LayerState)| LayerStatus {
            digest: BlobDigest::of(&[i as u8]),
            state: *state,
            reason: None,
            diff_id: Some(DiffId::of(&[i as u8])),
            chain_id: None,
            media_type: None,
            size: None,
            converted: None,
            toc: None,
        };
        ImageStatus {
            manifest_digest: BlobDigest::of(b"m"),
            config_digest: BlobDigest::of(b"c"),
            layers: states.iter().enumerate().map(layer).collect(),
            profile: None,
        }
    }

    fn reason(states: &[LayerState]) -> DeclineReason {
        let image = LazyImage::from_status(&BlobDigest::of(b"m"), &status(states));
        image.unwrap_err().reason
    }

    #[test]
    fn one_layer_that_is_not_ready_declines_the_image() {
        use LayerState::*;
        assert_eq!(reason(&[Ready, Converting]), DeclineReason::NotReady);
        assert_eq!(reason(&[Queued]), DeclineReason::NotReady);
        assert_eq!(reason(&[Unknown, Ready]), DeclineReason::NotReady);
        assert_eq!(reason(&[Failed, Converting]), DeclineReason::Failed);
        assert_eq!(reason(&[Converting, Failed, Refused]), DeclineReason::Refused);
        assert_eq!(reason(&[]), DeclineReason::Refused);
        let other = LazyImage::from_status(&BlobDigest::of(b"other"), &status(&[Ready]));
        assert_eq!(other.unwrap_err().reason, DeclineReason::Mismatch);
        let mut without = status(&[Ready]);
        without.layers[0].diff_id = None;
        let without = LazyImage::from_status(&BlobDigest::of(b"m"), &without);
        assert_eq!(without.unwrap_err().reason, DeclineReason::Mismatch);
    }

    #[test]
    fn the_target_must_fit_everything_known() {
        let image = LazyImage::from_status(&BlobDigest::of(b"m"), &status(&[LayerState::Ready; 2])).unwrap();
        let diff = [DiffId::of(&[0]), DiffId::of(&[1])];
        let chain = ChainId::chain(&diff);
        let top = image.target(&chain[1], None, Some(&chain[0])).unwrap();
        assert_eq!((top.layer, top.diff_id), (BlobDigest::of(&[1]), diff[1]));
        assert!(image.target(&chain[0], Some(&BlobDigest::of(&[0])), None).is_ok());
        for bad in [
            image.target(&ChainId::of(b"?"), None, None),
            image.target(&chain[1], Some(&BlobDigest::of(&[0])), None),
            image.target(&chain[1], None, Some(&ChainId::of(b"?"))),
        ] {
            assert_eq!(bad.unwrap_err().reason, DeclineReason::Mismatch);
        }
    }
}
