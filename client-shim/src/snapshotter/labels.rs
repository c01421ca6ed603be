//! The labels that carry meaning between containerd and a remote snapshotter, and what they say about a layer.
//!
//! In: the labels of a `Prepare`. Out: [`LayerIdentity`]. Invariant: digests are parsed here; a malformed one counts as
//! absent, because a label is advice and the chain ID alone suffices.
//! Not here: the question to the server ([`super::decide`]).

use headstart_layer_format::{BlobDigest, ChainId};

use super::record::Labels;

/// The chain ID that containerd is about to unpack; on a committed snapshot, the one it holds.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Marks a snapshot whose content is remote.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`] on our snapshots.
pub const REMOTE_VALUE: &str = "headstart";
/// Digest of the layer's blob, on lazy snapshots, for people who look at them with `ctr snapshots info`.
pub const HEADSTART_LAYER: &str = "containerd.io/snapshot/headstart.layer-digest";
/// The same of the manifest that the layer was mounted for.
pub const HEADSTART_MANIFEST: &str = "containerd.io/snapshot/headstart.manifest-digest";

/// Where a label with the image's manifest digest may be: CRI's, then the transfer service's style.
pub const MANIFEST_DIGEST: [&str; 2] = [
    "containerd.io/snapshot/cri.manifest-digest",
    "containerd.io/snapshot/manifest.digest",
];
/// The same for the layer's digest; the last is what stargz's own client sets.
const LAYER_DIGEST: [&str; 3] = [
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/layer.digest",
    "containerd.io/snapshot/remote/stargz.digest",
];
/// The same for the reference, used in log lines only.
pub const IMAGE_REF: [&str; 2] = [
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/remote/stargz.reference",
];

/// What a `Prepare` tells about the layer it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIdentity {
    /// The snapshot asked for.
    pub chain_id: ChainId,
    pub manifest: Option<BlobDigest>,
    pub layer: Option<BlobDigest>,
    pub image_ref: Option<String>,
}

impl LayerIdentity {
    /// `None`: this `Prepare` is not for a layer, or names its chain in a way no layer of ours can have.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        let first = |names: &[&str]| names.iter().find_map(|&name| labels.get(name));
        Some(Self {
            chain_id: labels.get(SNAPSHOT_REF)?.parse().ok()?,
            manifest: first(&MANIFEST_DIGEST).and_then(|v| v.parse().ok()),
            layer: first(&LAYER_DIGEST).and_then(|v| v.parse().ok()),
            image_ref: first(&IMAGE_REF).cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_needs_only_the_chain_and_takes_what_else_parses() {
        let chain = ChainId::of(b"c").to_string();
        let layer = BlobDigest::of(b"l").to_string();
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect::<Labels>()
        };
        assert_eq!(LayerIdentity::from_labels(&labels(&[(LAYER_DIGEST[0], &layer)])), None);
        assert_eq!(LayerIdentity::from_labels(&labels(&[(SNAPSHOT_REF, "my-layer")])), None);
        let bare = LayerIdentity::from_labels(&labels(&[(SNAPSHOT_REF, &chain)])).unwrap();
        assert_eq!((bare.manifest, bare.layer, bare.image_ref), (None, None, None));
        for name in LAYER_DIGEST {
            let named = labels(&[(SNAPSHOT_REF, &chain), (name, &layer), (MANIFEST_DIGEST[0], "latest")]);
            let named = LayerIdentity::from_labels(&named).unwrap();
            assert_eq!(named.layer, Some(BlobDigest::of(b"l")), "{name}");
            assert_eq!(named.manifest, None);
        }
    }
}
