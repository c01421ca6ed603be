//! What a strict registry makes of `Accept`, as those of the distribution project do.
//!
//! In: a manifest that is here, and the headers. Out: whether the client is given it.
//! Invariant: media types are compared as text, so a wildcard takes nothing.
//! Not here: schema 1, into which distribution 2 turned what its client did not name.

use headstart_layer_format::BlobDigest;
use http::{HeaderMap, header};

const OCI: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
];
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What the client is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    AsItIs,
    /// In place of a list that was asked for by tag: its manifest for the platform that old clients have.
    Child(BlobDigest),
    Nothing,
}

pub(super) fn given(headers: &HeaderMap, by_tag: bool, media_type: &str, bytes: &[u8]) -> Given {
    let values = headers
        .get_all(header::ACCEPT)
        .into_iter()
        .filter_map(|v| v.to_str().ok());
    let mut names = values
        .flat_map(|value| value.split(','))
        .map(|element| element.split(';').next().unwrap_or_default().trim());
    if names.any(|name| name == media_type) {
        return Given::AsItIs;
    }
    match media_type {
        DOCKER_LIST if by_tag => own_child(bytes).map_or(Given::Nothing, Given::Child),
        kind if OCI.contains(&kind) => Given::Nothing,
        _ => Given::AsItIs,
    }
}

fn own_child(list: &[u8]) -> Option<BlobDigest> {
    let list: serde_json::Value = serde_json::from_slice(list).ok()?;
    let mut children = list["manifests"].as_array()?.iter();
    let child = children.find(|c| c["platform"]["architecture"] == "amd64" && c["platform"]["os"] == "linux")?;
    child["digest"].as_str()?.parse().ok()
}
