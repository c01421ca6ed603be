//! What a manifest document says, as far as a mirror needs it.
//!
//! In: verified bytes and the media type they were served with. Out: the digests it names, and its layers if it is an
//! image of tar layers.
//! Invariant: a document that clients could read in two ways is refused (CVE-2021-41190): its `mediaType` must be the
//! served one, it lists either `manifests` or `layers`, and spells them so. Documents of other kinds are left alone; the bytes are
//! never changed.
//! Not here: fetching, and the facts' way to the store.

use std::{collections::HashMap, fmt};

use headstart_layer_format::{BlobDigest, limits::LAYERS_MAX};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::platform::Platform;
use crate::store::facts::{ImageFact, LayerFact, ManifestFact};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Every kind of manifest in use.
pub const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Layers that are tars begin so. (Docker's foreign layers too; nothing is fetched from their URLs.)
const TAR_LAYER_PREFIXES: [&str; 2] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
];

/// What a document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Config, layers, child manifests, in the order of the document.
    pub members: Vec<BlobDigest>,
    /// Of these, in ascending order, layers that are fetched from elsewhere, if at all: their type or their URLs say so.
    /// Artifacts have such, too.
    pub foreign: Vec<BlobDigest>,
    pub image: Option<ImageFact>,
}

/// The fields that matter; everything else is ignored. Descriptors with digests we do not know are left out.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    /// Docker's first schema.
    #[serde(rename = "fsLayers")]
    fs_layers: Option<Vec<FsLayer>>,
}

#[derive(Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    urls: Urls,
}

/// Whether there are URLs. None of them is kept, and something else in their place is no reason to refuse a manifest.
#[derive(Default)]
struct Urls {
    some: bool,
}

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UrlsVisitor)
    }
}

struct UrlsVisitor;

impl<'de> Visitor<'de> for UrlsVisitor {
    type Value = Urls;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of URLs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut urls: A) -> Result<Urls, A::Error> {
        let mut some = false;
        while urls.next_element::<IgnoredAny>()?.is_some() {
            some = true;
        }
        Ok(Urls { some })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Urls, A::Error> {
        IgnoredAny.visit_map(map).map(|_| Urls::default())
    }

    fn visit_unit<E>(self) -> Result<Urls, E> {
        Ok(Urls::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Urls, E> {
        Ok(Urls::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Urls, E> {
        Ok(Urls::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Urls, E> {
        Ok(Urls::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Urls, E> {
        Ok(Urls::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Urls, E> {
        Ok(Urls::default())
    }
}

#[derive(Deserialize)]
struct FsLayer {
    #[serde(rename = "blobSum")]
    blob_sum: Option<String>,
}

impl Descriptor {
    fn digest(&self) -> Option<BlobDigest> {
        self.digest.as_deref()?.parse().ok()
    }

    fn is_foreign(&self) -> bool {
        is_foreign_layer(&self.media_type) || self.urls.some
    }
}

/// Whether `media_type` is a type whose structure we know and insist on.
fn is_known(media_type: &str) -> bool {
    MANIFEST_TYPES.contains(&media_type)
}

/// Whether a document of this type lists manifests and nothing else.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether a layer of this type is fetched from elsewhere, if at all.
fn is_foreign_layer(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

/// Whether clients fetch this from elsewhere, if at all: an upstream need not have it.
pub fn is_foreign(fact: &ManifestFact, digest: &BlobDigest) -> bool {
    let mut layers = fact.image.iter().flat_map(|image| &image.layers);
    fact.foreign.binary_search(digest).is_ok()
        || layers.any(|layer| layer.digest == *digest && is_foreign_layer(&layer.media_type))
}

/// The type that a document says of itself. One that is kept was served as just that.
pub fn own_type(bytes: &[u8]) -> Option<String> {
    let fields: Fields = serde_json::from_slice(bytes).ok()?;
    fields.media_type
}

/// Reads a document. The error is a fragment that fits "the manifest is refused: ...".
pub fn read(bytes: &[u8], media_type: &str) -> Result<Document, &'static str> {
    let fields: Fields = match serde_json::from_slice(bytes) {
        Ok(fields) => fields,
        Err(_) if is_known(media_type) => return Err("it is not the JSON that its media type promises"),
        Err(_) => return Ok(Document::default()),
    };
    if is_misspelled(bytes) {
        return Err("a field is spelled as only some readers would take it");
    }
    if fields.media_type.as_deref().is_some_and(|inner| inner != media_type) {
        return Err("its mediaType is not the Content-Type");
    }
    if fields.manifests.is_some() && fields.layers.is_some() {
        return Err("it lists both manifests and layers");
    }
    if fields.manifests.is_some() && matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) {
        return Err("it lists manifests but is not an index");
    }
    if fields.layers.is_some() && matches!(media_type, OCI_INDEX | DOCKER_LIST) {
        return Err("it lists layers but is an index");
    }
    let image = image(&fields, media_type);
    let layers = fields.layers.iter().chain(&fields.blobs).flatten();
    let mut foreign: Vec<_> = layers
        .filter(|l| l.is_foreign())
        .filter_map(Descriptor::digest)
        .collect();
    foreign.sort_unstable();
    foreign.dedup();
    let lists = [fields.layers, fields.manifests, fields.blobs];
    let descriptors = fields.config.iter().chain(lists.iter().flatten().flatten());
    let mut members: Vec<_> = descriptors.filter_map(Descriptor::digest).collect();
    let sums = fields.fs_layers.iter().flatten().filter_map(|l| l.blob_sum.as_deref());
    members.extend(sums.filter_map(|s| s.parse::<BlobDigest>().ok()));
    // One entry a digest: images repeat their empty layer.
    let mut seen = std::collections::HashSet::new();
    members.retain(|digest| seen.insert(*digest));
    Ok(Document {
        members,
        foreign,
        image,
    })
}

/// Whether a field that decides what a document is has the right letters in another case. Go's readers take it for the
/// field (and fold two letters beyond ASCII as well), others do not: they would not see the same image.
fn is_misspelled(bytes: &[u8]) -> bool {
    const NAMES: [&str; 8] = [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "blobs",
        "fsLayers",
        "subject",
    ];
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    let keys: HashMap<String, IgnoredAny> = serde_json::from_slice(bytes).unwrap_or_default();
    keys.keys().filter(|key| !NAMES.contains(&key.as_str())).any(|key| {
        NAMES
            .iter()
            .any(|name| key.chars().map(fold).eq(name.chars().map(|c| c.to_ascii_lowercase())))
    })
}

/// The manifest that an index has for Linux on machines like ours.
pub fn own_child(bytes: &[u8]) -> Option<BlobDigest> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Child>,
    }
    #[derive(Deserialize)]
    struct Child {
        digest: String,
        platform: Option<Platform>,
    }
    let index: Index = serde_json::from_slice(bytes).ok()?;
    let own = Platform::own();
    let mut children = index.manifests.iter();
    let child = children.find(|child| child.platform.as_ref().is_some_and(|platform| platform.is(&own)))?;
    child.digest.parse().ok()
}

/// The image, if every layer is a tar with a digest we know.
fn image(fields: &Fields, media_type: &str) -> Option<ImageFact> {
    if !matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) {
        return None;
    }
    let config = fields.config.as_ref()?;
    let layers = fields.layers.as_ref()?;
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
        || layers.is_empty()
        || layers.len() > LAYERS_MAX
    {
        return None;
    }
    let layers = layers
        .iter()
        .map(|layer| {
            let is_tar = TAR_LAYER_PREFIXES.iter().any(|p| layer.media_type.starts_with(p));
            Some(LayerFact {
                digest: layer.digest().filter(|_| is_tar)?,
                media_type: layer.media_type.clone(),
                size: layer.size,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(ImageFact {
        config: config.digest()?,
        layers,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str, content: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": BlobDigest::of(content.as_bytes()).to_string(), "size": 5 })
    }

    fn read_json(value: &serde_json::Value, media_type: &str) -> Result<Document, &'static str> {
        read(value.to_string().as_bytes(), media_type)
    }

    #[test]
    fn images_have_their_layers_in_order_and_each_member_once() {
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, "c"),
            "layers": [descriptor(layer, "a"), descriptor(layer, "b"), descriptor(layer, "a")],
        });
        let document = read_json(&manifest, OCI_MANIFEST).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|s| BlobDigest::of(s.as_bytes()));
        assert_eq!(document.members, [c, a, b]);
        let image = document.image.unwrap();
        assert_eq!(image.config, c);
        assert_eq!(image.layers.iter().map(|l| l.digest).collect::<Vec<_>>(), [a, b, a]);
    }

    #[test]
    fn an_index_has_a_child_for_machines_like_ours() {
        let child = |content: &str, os: &str, architecture: &str| {
            json!({ "digest": BlobDigest::of(content.as_bytes()).to_string(),
                    "platform": { "os": os, "architecture": architecture } })
        };
        let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let index = json!({ "manifests": [child("a", "unknown", "unknown"), child("b", "linux", own)] });
        assert_eq!(own_child(index.to_string().as_bytes()), Some(BlobDigest::of(b"b")));
        let index = json!({ "manifests": [child("a", "windows", own), { "digest": "sha256:1" }] });
        assert_eq!(own_child(index.to_string().as_bytes()), None);
    }

    #[test]
    fn attestations_and_artifacts_are_no_images_but_have_members() {
        let attestation = json!({
            "config": descriptor(OCI_CONFIG, "c"), "layers": [descriptor("application/vnd.in-toto+json", "a")],
        });
        let document = read_json(&attestation, OCI_MANIFEST).unwrap();
        assert_eq!((document.members.len(), document.image), (2, None));
    }

    #[test]
    fn what_is_elsewhere_is_told_by_its_type_or_its_urls() {
        let mut with_urls = descriptor("application/vnd.example", "a");
        with_urls["urls"] = json!(["https://example.test/a"]);
        let mut without = descriptor("application/vnd.example", "b");
        without["urls"] = json!([]);
        let by_type = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", "c");
        let artifact =
            json!({ "config": descriptor("application/vnd.example", "d"), "layers": [with_urls, without, by_type] });
        let document = read_json(&artifact, OCI_MANIFEST).unwrap();
        let mut foreign = ["a", "c"].map(|s| BlobDigest::of(s.as_bytes()));
        foreign.sort_unstable();
        assert_eq!((document.members.len(), document.foreign), (4, foreign.to_vec()));
        for odd in [
            json!(null),
            json!("a"),
            json!(1),
            json!(-1),
            json!(0.5),
            json!(true),
            json!({ "a": [1] }),
        ] {
            let odd = json!({ "layers": [{ "digest": BlobDigest::of(b"x"), "urls": odd }] });
            assert_eq!(
                read_json(&odd, OCI_MANIFEST).map(|d| d.foreign),
                Ok(Vec::new()),
                "{odd}"
            );
        }
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let both = json!({ "manifests": [], "layers": [] });
        let lying = json!({ "mediaType": OCI_INDEX, "manifests": [] });
        let index = json!({ "manifests": [] });
        for (document, served) in [
            (&both, OCI_MANIFEST),
            (&both, OCI_INDEX),
            (&both, "application/x"),
            (&lying, OCI_MANIFEST),
            (&lying, "application/x"),
            (&index, DOCKER_MANIFEST),
        ] {
            assert!(read_json(document, served).is_err(), "{document} as {served}");
        }
        assert!(read(b"\x1f\x8b", OCI_MANIFEST).is_err());
        for (text, served) in [
            (r#"{"layers":[],"Manifests":[]}"#, OCI_MANIFEST),
            (r#"{"LAYERS":[],"manifests":[]}"#, OCI_INDEX),
            ("{\"manife\u{17f}ts\":[]}", "application/x"),
            (
                r#"{"layers":[],"MediaType":"application/vnd.oci.image.index.v1+json"}"#,
                OCI_MANIFEST,
            ),
        ] {
            assert!(read(text.as_bytes(), served).is_err(), "{text} as {served}");
        }
    }

    #[test]
    fn unknown_kinds_are_left_alone() {
        for bytes in [&b"\x00\xff not json"[..], b"[1,2]", b"{}", b"{\"layers\":7}"] {
            assert_eq!(read(bytes, "application/vnd.example"), Ok(Document::default()));
        }
    }
}
