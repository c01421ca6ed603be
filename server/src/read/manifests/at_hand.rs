//! Manifests that can be given at once.
//!
//! In: what a client pulls. Out: its manifest, if everything that decides whether it is given is in memory.
//! Invariant: what is given is what [`Manifests::get`] and [`Manifests::ready`] would give at that moment; nothing here
//! waits or asks anybody. "None" says nothing: those have to be asked. Most requests of a warm cluster end here, as long as
//! the upstream was not asked for anything else a moment ago: then an image is not looked at to know that it is whole.
//! Not here: all that is not in memory ([`super`]), and servers with access rules (`http/v2_manifest.rs` asks for none of theirs).

use headstart_layer_format::BlobDigest;

use super::{Caller, Inner, Manifest, Manifests, Reference, Source, Tag};
use crate::read::accept::Accept;

impl Manifests {
    /// For a pull.
    pub fn at_hand(
        &self,
        source: &Source,
        caller: &Caller,
        reference: &Reference,
        accept: &Accept,
    ) -> Option<Manifest> {
        let inner = &self.inner;
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => inner.fresh_at_hand(source, tag, accept)?,
        };
        let found = inner.shelf.at_hand(source, &digest)?;
        let begins = inner.begins(&found.fact);
        inner
            .obtainable
            .is_known_whole(caller, &found.fact, begins)
            .then_some(Manifest {
                bytes: found.bytes,
                warning: None,
                fact: found.fact,
            })
    }
}

impl Inner {
    /// Where the tag points, if this process has asked lately enough.
    fn fresh_at_hand(&self, source: &Source, tag: &Tag, accept: &Accept) -> Option<BlobDigest> {
        let (digest, age) = self.recent(source, tag, accept)?;
        self.policies.of(&source.upstream).fresh.covers(age).then_some(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        app::App,
        config::{Config, UpstreamConfig},
        read::{
            ReadError,
            manifests::{Purpose, Request},
        },
        store::facts::{ImageFact, LayerFact, ManifestFact},
    };

    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn source(repository: &str) -> Source {
        Source {
            upstream: "u".into(),
            repository: repository.into(),
        }
    }

    /// An image that is here as a whole, of an upstream that is not.
    async fn image(dir: &std::path::Path) -> (App, BlobDigest) {
        let mut config = Config {
            data_dir: dir.to_owned(),
            upstreams: vec![UpstreamConfig::new("u", "http://127.0.0.1:1")],
            default_upstream: Some("u".into()),
            ..Config::default()
        };
        config.fetch.tag_fresh_ms = 60_000;
        let app = App::open(config).await.unwrap();
        let put = |bytes: &[u8]| {
            let digest = BlobDigest::of(bytes);
            app.originals.put(&digest, bytes).unwrap();
            digest
        };
        let [config, layer, digest] = [&b"{}"[..], b"a layer", b"{\"schemaVersion\":2}"].map(put);
        let layers = vec![LayerFact {
            digest: layer,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            size: 7,
        }];
        let fact = ManifestFact {
            source: source("a"),
            digest,
            media_type: TYPE.into(),
            size: 19,
            members: vec![config, layer],
            foreign: Vec::new(),
            image: Some(ImageFact { config, layers }),
        };
        app.store.record_manifest(&fact).unwrap();
        (app, digest)
    }

    fn accept() -> Accept {
        Accept::new(&[http::HeaderValue::from_static("*/*")])
    }

    fn at_hand(app: &App, repository: &str, reference: &Reference) -> Option<Manifest> {
        let (source, caller) = (source(repository), Caller::Server);
        app.manifests.at_hand(&source, &caller, reference, &accept())
    }

    /// As the long way does it.
    async fn pull(app: &App, reference: &Reference) -> Manifest {
        let request = Request {
            purpose: Purpose::Pull,
            source: source("a"),
            caller: Caller::Server,
            reference: reference.clone(),
            accept: accept(),
        };
        let manifest = app.manifests.get(&request).await.unwrap();
        app.manifests.ready(&request, &manifest).await.unwrap();
        manifest
    }

    #[tokio::test]
    async fn what_was_given_a_moment_ago_is_at_hand_and_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (app, digest) = image(dir.path()).await;
        let reference = Reference::Digest(digest);
        assert!(
            at_hand(&app, "a", &reference).is_none(),
            "nobody has looked at its blobs"
        );
        let long = pull(&app, &reference).await;
        let short = at_hand(&app, "a", &reference).expect("all is known");
        assert_eq!(short.bytes, long.bytes);
        assert_eq!((short.digest(), short.media_type()), (&digest, TYPE));
        assert_eq!(short.fact, long.fact);
        assert!(
            short.warning.is_none() && at_hand(&app, "b", &reference).is_none(),
            "another's"
        );
        app.originals.remove(&digest).unwrap();
        assert!(at_hand(&app, "a", &reference).is_none(), "its bytes are gone");
    }

    #[tokio::test]
    async fn an_image_goes_the_long_way_when_its_blobs_went_wrong_and_an_index_when_anything_did() {
        let dir = tempfile::tempdir().unwrap();
        let (app, digest) = image(dir.path()).await;
        let bytes = b"{\"schemaVersion\":2,\"manifests\":[]}";
        let index = ManifestFact {
            source: source("a"),
            digest: BlobDigest::of(bytes),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            size: bytes.len() as u64,
            members: vec![digest],
            foreign: Vec::new(),
            image: None,
        };
        app.originals.put(&index.digest, bytes).unwrap();
        app.store.record_manifest(&index).unwrap();
        let [image, index] = [digest, index.digest].map(Reference::Digest);
        let is_at_hand = |reference| at_hand(&app, "a", reference).is_some();
        for reference in [&image, &index] {
            pull(&app, reference).await;
            assert!(is_at_hand(reference), "{reference:?}");
        }
        let (caller, error) = (Caller::Server, ReadError::Unknown);
        let others = BlobDigest::of(b"another manifest");
        app.blobs.withhold(&source("x"), &caller, &others, &error);
        assert!(is_at_hand(&image) && !is_at_hand(&index));
        app.blobs
            .refused(&source("a"), &caller, &BlobDigest::of(b"a layer"), &error);
        assert!(!is_at_hand(&image));
    }

    #[tokio::test]
    async fn a_tag_is_at_hand_while_its_word_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let (app, digest) = image(dir.path()).await;
        pull(&app, &Reference::Digest(digest)).await;
        let reference: Reference = "latest".parse().unwrap();
        let Reference::Tag(tag) = &reference else {
            panic!("{reference:?}")
        };
        assert!(at_hand(&app, "a", &reference).is_none(), "nobody has asked for it");
        let inner: &Arc<Inner> = &app.manifests.inner;
        let fresh = Duration::from_millis(app.config.fetch.tag_fresh_ms);
        let said = |age| {
            let at = Instant::now().checked_sub(age).unwrap();
            inner
                .recent
                .insert((source("a"), tag.clone(), accept().class()), (digest, at));
        };
        said(fresh / 2);
        assert_eq!(at_hand(&app, "a", &reference).map(|m| *m.digest()), Some(digest));
        said(2 * fresh);
        assert!(at_hand(&app, "a", &reference).is_none(), "it is to be asked for again");
    }
}
