//! What goes over the administration socket: paths and bodies, both ways.
//!
//! Invariant: a server and a command line of one version agree, because both use these types; `v1` in the paths is for
//! the others.
//! Not here: behaviour.

use headstart_layer_format::{BlobDigest, profile::Class};
use serde::{Deserialize, Serialize};

use crate::{
    profile::export::Export,
    scrub::{Progress, Report},
};

pub const IMAGES: &str = "/admin/v1/images";
pub const BLOBS: &str = "/admin/v1/blobs";
pub const LAYERS: &str = "/admin/v1/layers";
pub const PINS: &str = "/admin/v1/pins";
pub const PIN: &str = "/admin/v1/pin";
pub const UNPIN: &str = "/admin/v1/unpin";
pub const REMOVE: &str = "/admin/v1/remove";
pub const COLLECT: &str = "/admin/v1/gc";
pub const FSCK: &str = "/admin/v1/fsck";
pub const WARM: &str = "/admin/v1/warm";
pub const PROFILES: &str = "/admin/v1/profiles";
/// One, with what is in it.
pub const PROFILE: &str = "/admin/v1/profile";
pub const PROFILE_IMPORT: &str = "/admin/v1/profile/import";
pub const PROFILE_PIN: &str = "/admin/v1/profile/pin";
pub const PROFILE_UNPIN: &str = "/admin/v1/profile/unpin";
pub const PROFILE_FORGET: &str = "/admin/v1/profile/forget";
/// What an image is made of.
pub const IMAGE: &str = "/admin/v1/image";
/// An original's bytes, by digest below this.
pub const ORIGINALS: &str = "/admin/v1/originals";

/// Rows of a list when nobody says how many; and at most.
const LIMIT_DEFAULT: usize = 1_000;
const LIMIT_MAX: usize = 100_000;

#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    pub limit: Option<usize>,
}

impl Page {
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX)
    }
}

/// Most recently used first.
#[derive(Debug, Serialize, Deserialize)]
pub struct List<T> {
    pub items: Vec<T>,
    /// How many there are, listed or not.
    pub count: usize,
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    /// `upstream/repository:tag`, or `@digest` for one that no tag points at.
    pub name: String,
    pub digest: BlobDigest,
    /// Of originals that are here.
    pub bytes: u64,
    pub used_unix_ms: u64,
    pub pinned: bool,
    /// Layers of all platforms: converted, here as originals, known.
    pub layers_ready: u64,
    pub layers_here: u64,
    pub layers_count: u64,
}

/// A blob, or a layer in its converted form.
#[derive(Debug, Serialize, Deserialize)]
pub struct Object {
    pub digest: BlobDigest,
    pub bytes: u64,
    pub used_unix_ms: u64,
    pub pinned: bool,
    /// `manifest`, `blob`; `ready`, `refused`, `unconverted`.
    pub state: String,
}

/// A pin, whether or not anything of its image is here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pin {
    /// As `unpin` takes it.
    pub target: String,
    /// What it stands for now.
    pub digest: Option<BlobDigest>,
    /// Of originals that it keeps.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct What {
    /// An image reference or a digest.
    pub target: String,
    #[serde(default)]
    pub force: bool,
}

/// What is known of one kind of start of one image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Profile {
    /// `upstream/repository`, as far as they are known; the latest first.
    pub repositories: Vec<String>,
    pub config: BlobDigest,
    pub class: Class,
    pub starts: usize,
    pub nodes: usize,
    pub learned_unix_ms: u64,
    pub used_unix_ms: u64,
    /// On disk.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileOf {
    pub image: String,
    /// Left out: what most nodes start.
    #[serde(default)]
    pub class: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ProfileShown {
    pub manifest: BlobDigest,
    /// Without its runs.
    pub profile: headstart_layer_format::profile::Profile,
    pub export: Export,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileImport {
    pub image: String,
    pub export: Export,
}

/// Files of a repository's images.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfilePin {
    pub image: String,
    #[serde(default)]
    pub paths: Vec<String>,
    /// Further ones, in JSON lines as eStargz's tools record them.
    #[serde(default)]
    pub record: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ProfilePinned {
    pub repository: String,
    pub changed: usize,
    /// Those that are pinned now.
    pub paths: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ProfileForgotten {
    pub classes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Changed {
    pub changed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    pub dry_run: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fsck {
    pub repair: bool,
    /// 0: no limit; left out: as configured.
    #[serde(default)]
    pub bytes_per_sec: Option<u64>,
}

/// How a check goes; the last is `Done` or `Failed`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Checking {
    Progress(Progress),
    Done(Report),
    Failed { error: String },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    pub images: Vec<String>,
    /// `os/architecture[/variant]`; empty: the server's own.
    #[serde(default)]
    pub platforms: Vec<String>,
    #[serde(default)]
    pub all_platforms: bool,
}

/// An image's layers, bottom first.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageLayers {
    /// Of the image manifest itself, also when an index was named.
    pub digest: BlobDigest,
    pub layers: Vec<ImageLayer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ImageLayer {
    pub digest: BlobDigest,
    /// As the manifest has it.
    pub size: u64,
    /// Whether the original is here.
    pub here: bool,
}

/// What happened to an image that is being warmed. Every image ends with `Done` or `Failed`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What there is to fetch, as far as its manifests say.
    Resolved {
        image: String,
        blobs: u64,
        bytes: u64,
    },
    Progress {
        image: String,
        bytes: u64,
    },
    /// Everything is here; so many layers are still being converted.
    Converting {
        image: String,
        left: u64,
    },
    /// The image is complete. Refused layers stay ordinary blobs.
    Done {
        image: String,
        bytes: u64,
        refused: u64,
    },
    Failed {
        image: String,
        error: String,
    },
}
