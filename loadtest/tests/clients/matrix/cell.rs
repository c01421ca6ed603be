//! One cell: one client pulls one image of its own while its own upstream misbehaves in one way.
//!
//! In: the row's misbehaviour. Out: an [`Outcome`]. Invariant: cells share the server and the client's daemon, nothing
//! else; who served what is counted at the next host.
//! Not here: how a client pulls ([`super::columns`]).

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::{
    corpus::{OCI_INDEX, SyntheticImage, index_of},
    origin::{Call, Origin},
    playground::proxy::Proxy,
};

use super::{
    columns::{Client, Column},
    rows::{Row, Warm},
};
use crate::support::{Bench, images};

pub const REPOSITORY: &str = "team/app";

/// Pause before the same command again. The kubelet's is ten seconds; containerd needs a moment after a failed pull to
/// forget what it was given, and goes on from wrong bytes until it has.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

pub struct Cell {
    pub row: usize,
    /// The name in references; nowhere else.
    pub registry: String,
    pub image: SyntheticImage,
    /// Behind the server.
    pub upstream: Origin,
    /// After the server.
    pub next: Origin,
    /// What the tag points at, and as what.
    index: Option<Bytes>,
}

/// What became of the pull, told from what the next host was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it through the server.
    Through,
    /// The manifest through the server, blobs (some or parts of some) from the next host.
    BlobsElsewhere,
    /// Refused at the manifest; everything from the next host.
    NextHost,
    /// The first pull failed, and the same command a moment later got the image (from the server or the next host): what the
    /// kubelet does by itself.
    SecondTry,
    /// The second failed, too.
    ThirdTry,
    /// Three times no image.
    Failed(String),
}

/// An outcome without its story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    Through,
    BlobsElsewhere,
    NextHost,
    SecondTry,
    ThirdTry,
    Failed,
}

impl Outcome {
    pub fn short(&self) -> Short {
        match self {
            Outcome::Through => Short::Through,
            Outcome::BlobsElsewhere => Short::BlobsElsewhere,
            Outcome::NextHost => Short::NextHost,
            Outcome::SecondTry => Short::SecondTry,
            Outcome::ThirdTry => Short::ThirdTry,
            Outcome::Failed(_) => Short::Failed,
        }
    }

    pub fn title(&self) -> &'static str {
        match self {
            Outcome::Through => "through the mirror",
            Outcome::BlobsElsewhere => "manifest through the mirror, blobs from the next host",
            Outcome::NextHost => "refused at the manifest, next host",
            Outcome::SecondTry => "first pull fails, second succeeds",
            Outcome::ThirdTry => "two pulls fail, third succeeds",
            Outcome::Failed(_) => "fails",
        }
    }
}

impl Cell {
    pub fn new(column: Column, row: usize, layers: &[usize]) -> Cell {
        let image = images::image(10_000 + 100 * column as u64 + row as u64, layers);
        let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let index = (column == Column::PodmanIndex).then(|| index_of(&[(own, &image)]));
        let origin = || {
            let origin = Origin::with_image(REPOSITORY, "v1", &image);
            if let Some(index) = &index {
                origin.add_manifest(REPOSITORY, Some("v1"), OCI_INDEX, index.clone());
            }
            origin
        };
        Cell {
            row,
            registry: format!("u{row}-{}.test", column as usize),
            upstream: origin(),
            next: origin(),
            image,
            index,
        }
    }

    pub fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:v1", self.registry)
    }

    pub async fn run(&self, row: &Row, client: &Client, bench: &Bench, proxy: &Proxy) -> Outcome {
        self.warm(row.warm, proxy).await;
        self.upstream.clear_calls();
        (row.misbehave)(&self.upstream, &self.image);
        let expire = async {
            if row.expires {
                // After the first signed URL was used, it is good no more.
                self.upstream
                    .wait_for("a redirect", |calls| calls.iter().any(|c| c.path.starts_with("/cdn/")))
                    .await;
                self.upstream.expire_signatures();
            }
        };
        let (first, ()) = tokio::join!(client.pull(self, bench, "first"), expire);
        let outcome = match first {
            Ok(()) => self.outcome(),
            Err(error) => self.again(error, client, bench).await,
        };
        self.assert_no_wrong_body(proxy).await;
        outcome
    }

    /// The same command once more, and once more.
    async fn again(&self, mut errors: String, client: &Client, bench: &Bench) -> Outcome {
        for (round, outcome) in [("second", Outcome::SecondTry), ("third", Outcome::ThirdTry)] {
            tokio::time::sleep(AGAIN_AFTER).await;
            match client.pull(self, bench, round).await {
                Ok(()) => return outcome,
                Err(error) => errors.push_str(&format!("; then: {error}")),
            }
        }
        Outcome::Failed(errors)
    }

    /// Asks the server for what shall be in its cache.
    async fn warm(&self, warm: Warm, proxy: &Proxy) {
        let (of_image, mut paths) = (self.image.manifest_media_type, Vec::new());
        let kind = self.index.as_ref().map_or(of_image, |_| OCI_INDEX);
        let below = |path: &str| format!("/v2/{}/{REPOSITORY}/{path}", self.registry);
        match warm {
            Warm::Cold => {}
            // A GET would bring blobs, too.
            Warm::Manifest => {
                let status = proxy.head(&below("manifests/v1"), kind).await.unwrap();
                assert_eq!(status, 200, "{}", self.registry);
            }
            Warm::Everything => {
                let image = below(&format!("manifests/{}", self.image.manifest_digest));
                assert_eq!(proxy.get(&image, of_image).await.unwrap().0, 200, "{image}");
                paths.push(below("manifests/v1"));
                paths.extend(images::blobs(&self.image).iter().map(|d| below(&format!("blobs/{d}"))));
            }
        }
        for path in paths {
            let (status, _) = proxy.get(&path, kind).await.unwrap();
            assert_eq!(status, 200, "{path}");
        }
    }

    fn outcome(&self) -> Outcome {
        let calls = self.next.calls();
        let got = |c: &&Call| c.method == "GET" && matches!(c.status, 200 | 206) && c.digest.is_some();
        let manifest = calls.iter().filter(got).any(Call::is_manifest);
        let blobs = calls.iter().filter(got).any(Call::is_blob);
        match (manifest, blobs) {
            (true, _) => Outcome::NextHost,
            (false, true) => Outcome::BlobsElsewhere,
            (false, false) => Outcome::Through,
        }
    }

    /// Whatever else: a complete body is right, asked for as a range that is all of it or as a whole.
    async fn assert_no_wrong_body(&self, proxy: &Proxy) {
        let blobs = images::blobs(&self.image);
        join_all(blobs.iter().map(|digest| self.assert_right_if_complete(digest, proxy))).await;
    }

    async fn assert_right_if_complete(&self, digest: &BlobDigest, proxy: &Proxy) {
        let path = format!("/v2/{}/{REPOSITORY}/blobs/{digest}", self.registry);
        // The range comes first: of what is here then, every answer is right.
        let range = proxy.get_range(&path, "bytes=0-").await;
        let whole = proxy.get(&path, "*/*").await;
        for (asked, answer, complete) in [("a range", range, 206), ("the whole", whole, 200)] {
            // An error is a body that was cut.
            if let Ok((status, body)) = answer
                && status.is_success()
            {
                assert_eq!(status, complete, "{asked}: {}", self.registry);
                assert_eq!(
                    BlobDigest::of(&body),
                    *digest,
                    "a wrong body left the server complete, {asked}: {}",
                    self.registry
                );
            }
        }
    }
}
