//! A manifest is given when its blobs can be had: what is asked for that, and what it costs.
//!
//! In: an upstream of which one thing is wrong, or slow. Out: who is refused, and what the upstream was asked.
//! Not here: that what is wrong about one image touches no other (`withheld.rs`), and the clients (loadtest, `clients`).

mod support;

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Call, Fault, Origin, Target};
use headstart_server::config::Config;
use serde_json::json;
use support::{REPOSITORY, Server, config, noise, until};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MIB: usize = 1 << 20;

/// One image; its blobs are the config and one layer a size.
struct Image {
    origin: Origin,
    manifest: BlobDigest,
    blobs: Vec<(BlobDigest, usize)>,
}

impl Image {
    fn new(sizes: &[usize]) -> Image {
        let origin = Origin::start(Auth::Anonymous);
        let mut blobs: Vec<(BlobDigest, usize)> = Vec::new();
        for (seed, size) in sizes.iter().enumerate() {
            blobs.push((origin.add_blob(REPOSITORY, noise(*size, seed as u64 + 1)), *size));
        }
        let layer = |(digest, size): &(BlobDigest, usize)| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size });
        let layers: Vec<_> = blobs.iter().map(layer).collect();
        let text = json!({ "rootfs": { "type": "layers", "diff_ids": [] } }).to_string();
        let config = origin.add_blob(REPOSITORY, text.clone());
        blobs.push((config, text.len()));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": text.len() },
            "layers": layers,
        });
        let manifest = origin.add_manifest(REPOSITORY, Some("a"), OCI_MANIFEST, manifest.to_string());
        Image {
            origin,
            manifest,
            blobs,
        }
    }

    async fn server(&self, change: impl FnOnce(&mut Config)) -> (Server, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&self.origin, dir.path());
        config.upstreams[0].breaker.failures_max = 1000;
        config.fetch.tries_max = 1;
        change(&mut config);
        self.origin.clear_faults();
        self.origin.clear_calls();
        (Server::with(config).await, dir)
    }

    /// Of each blob the first byte was asked for, once.
    fn assert_proven(&self) {
        let calls = self.blob_calls("GET");
        let all: std::collections::BTreeSet<_> = calls.iter().filter_map(|c| c.digest).collect();
        // An empty one has none, and is told by an error's text.
        let is_right = |c: &Call| is_proof(c) || (c.status == 416 && c.range.as_deref() == Some("bytes=0-0"));
        assert!(calls.iter().all(is_right), "{calls:#?}");
        assert!(all.len() == self.blobs.len() && calls.len() == all.len(), "{calls:#?}");
    }

    fn blob_calls(&self, method: &str) -> Vec<Call> {
        let calls = self.origin.calls().into_iter();
        calls.filter(|c| c.is_blob() && c.method == method).collect()
    }
}

/// A GET of one byte.
fn is_proof(call: &Call) -> bool {
    call.method == "GET" && call.range.as_deref() == Some("bytes=0-0") && call.body_sent <= 1
}

fn gets(digest: BlobDigest) -> Target {
    Target::Gets(Box::new(Target::Digest(digest)))
}

fn status(code: u16) -> Fault {
    Fault::Status {
        code,
        retry_after_secs: None,
    }
}

/// The HEAD of each blob is right, and so are all GETs but one.
#[tokio::test(flavor = "multi_thread")]
async fn one_blob_that_cannot_be_got_withholds_the_image() {
    let image = Image::new(&[1000, 3 * MIB, 2000]);
    for (blob, _) in &image.blobs {
        for (code, expected) in [(401, 403), (403, 403), (404, 404), (416, 502), (429, 429), (503, 502)] {
            let (server, _dir) = image.server(|_| {}).await;
            image.origin.always(gets(*blob), status(code));
            assert_eq!(server.fetch(&server.manifest_url("a")).await.0, expected, "{code}");
            // A moment later that is still known, and costs nothing.
            let asked = image.origin.gets(blob).len();
            assert_eq!(server.fetch(&server.manifest_url(image.manifest)).await.0, expected);
            assert_eq!(image.origin.gets(blob).len(), asked);
            server.stop().await;
        }
        let (server, _dir) = image.server(|config| config.fetch.header_timeout_ms = 300).await;
        image
            .origin
            .always(gets(*blob), Fault::DelayHeaders(Duration::from_secs(60)));
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 504);
        server.stop().await;
    }
}

/// However many blobs there are, they are begun together, and the manifest waits for the first byte of each.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_begun_together_and_brought_once() {
    let image = Image::new(&[1000, 3 * MIB, 2000, 5 * MIB, 3000]);
    let (server, _dir) = image.server(|_| {}).await;
    let gate = image.origin.hold(Target::Blobs, 0);
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let request = server.http.get(server.manifest_url("a"));
            tokio::spawn(async move { request.send().await.unwrap().status() })
        })
        .collect();
    let all = image.blobs.len();
    let begun = |calls: &[Call]| calls.iter().filter(|c| c.is_blob() && c.status > 0).count() >= all;
    image.origin.wait_for("every blob to be begun", begun).await;
    assert!(asked.iter().all(|one| !one.is_finished()), "no byte has come");
    let calls = image.blob_calls("GET");
    let unit = |call: &Call| call.range.as_deref() == Some("bytes=0-1048575");
    assert!(calls.len() == all && calls.iter().all(unit), "{calls:#?}");
    gate.open();
    for one in asked {
        assert_eq!(one.await.unwrap(), 200);
    }
    for (blob, size) in &image.blobs {
        let body = server.fetch(&server.blob_url(blob)).await.1.unwrap();
        assert_eq!(body.len(), *size);
    }
    let originals = &server.app.originals;
    until("all is here", || {
        image.blobs.iter().all(|(b, _)| originals.path(b).exists())
    })
    .await;
    for (blob, size) in &image.blobs {
        assert_eq!(image.origin.bytes_sent(blob), *size as u64, "each byte once");
    }
    // Warm, nobody asks about blobs.
    image.origin.clear_calls();
    for reference in ["a".to_owned(), image.manifest.to_string()] {
        assert_eq!(server.fetch(&server.manifest_url(reference)).await.0, 200);
    }
    assert!(image.origin.calls().iter().all(|c| !c.is_blob()));
    server.stop().await;
}

/// Who looks at a head has no blob fetched; of an index, whose reader may want another platform, one byte of each is.
#[tokio::test(flavor = "multi_thread")]
async fn looking_and_choosing_cost_a_byte_a_blob() {
    let image = Image::new(&[1000, 2000]);
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let child = json!({ "mediaType": OCI_MANIFEST, "digest": image.manifest, "size": 1,
                        "platform": { "os": "linux", "architecture": own } });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] });
    let add = |tag| {
        image
            .origin
            .add_manifest(REPOSITORY, Some(tag), OCI_INDEX, index.to_string())
    };
    add("multi");
    let (server, _dir) = image.server(|_| {}).await;
    for reference in ["a", "multi"] {
        let head = server.http.head(server.manifest_url(reference)).send().await.unwrap();
        assert_eq!(head.status(), 200);
    }
    assert!(image.blob_calls("GET").is_empty(), "{:#?}", image.blob_calls("GET"));
    assert_eq!(image.blob_calls("HEAD").len(), 1, "once a repository");
    // What is promised is no proof.
    for _ in 0..2 {
        assert_eq!(server.fetch(&server.manifest_url("multi")).await.0, 200);
        image.assert_proven();
    }
    assert_eq!(image.blob_calls("HEAD").len(), 1);
    // What was asked of the index is not enough for the image.
    image.origin.always(gets(image.blobs[1].0), status(403));
    assert_eq!(server.fetch(&server.manifest_url(image.manifest)).await.0, 403);
    server.stop().await;
    // One of them is enough for the index to be withheld.
    for (code, expected) in [(401, 403), (403, 403), (404, 404), (416, 502), (429, 429), (503, 502)] {
        let (server, _dir) = image.server(|_| {}).await;
        image.origin.always(gets(image.blobs[1].0), status(code));
        assert_eq!(server.fetch(&server.manifest_url("multi")).await.0, expected, "{code}");
        let calls = || image.blob_calls("GET").into_iter();
        let asked = || calls().filter(|c| c.digest == Some(image.blobs[1].0)).count();
        let once = asked();
        assert_eq!(server.fetch(&server.manifest_url("multi")).await.0, expected);
        assert_eq!(asked(), once, "that is still known");
        server.stop().await;
    }
}

/// Where nothing is converted, nothing is fetched unasked either.
#[tokio::test(flavor = "multi_thread")]
async fn without_conversions_first_bytes_are_asked_for() {
    let image = Image::new(&[1000, 2000, 3000, 0]);
    let plain = |config: &mut Config| config.ingest.enabled = false;
    let (server, _dir) = image.server(plain).await;
    for _ in 0..2 {
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
        image.assert_proven();
    }
    assert!(image.blob_calls("HEAD").is_empty());
    server.stop().await;
    let blob = image.blobs[2].0;
    for (fault, expected) in [
        (status(403), 403),
        (status(429), 429),
        // The head is right, and nothing follows.
        (Fault::Truncate { after: 0 }, 502),
        (Fault::Reset { after: 0 }, 502),
    ] {
        let (server, _dir) = image.server(plain).await;
        image.origin.always(gets(blob), fault.clone());
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, expected, "{fault:?}");
        server.stop().await;
        let (server, _dir) = image.server(plain).await;
        image.origin.once(gets(blob), Fault::Truncate { after: 0 });
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200, "once is chance");
        server.stop().await;
    }
    // A link that is signed for HEAD leads nowhere.
    let (server, _dir) = image.server(plain).await;
    image.origin.redirect_blobs(true);
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    server.stop().await;
    let (server, _dir) = image.server(plain).await;
    image.origin.always(Target::Gets(Box::new(Target::Cdn)), status(403));
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 502);
    server.stop().await;
    image.origin.redirect_blobs(false);
    let (server, _dir) = image
        .server(|config| {
            plain(config);
            config.fetch.header_timeout_ms = 300;
        })
        .await;
    image
        .origin
        .always(gets(blob), Fault::DelayHeaders(Duration::from_secs(60)));
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 504);
    server.stop().await;
    // What takes longer than a client can be kept is taken for a yes.
    let (server, _dir) = image.server(plain).await;
    image
        .origin
        .always(Target::Blobs, Fault::DelayHeaders(Duration::from_secs(60)));
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
}

/// Registries that do not like a range are asked by HEAD, and believed if they have none.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_gives_its_word() {
    let image = Image::new(&[1000, 2000]);
    let blob = image.blobs[1].0;
    for code in [400, 405, 501] {
        for (head, expected) in [(None, 200), (Some(405), 200), (Some(403), 403)] {
            let (server, _dir) = image.server(|config| config.ingest.enabled = false).await;
            image.origin.always(gets(blob), status(code));
            if let Some(head) = head {
                image.origin.always(Target::Digest(blob), status(head));
            }
            let given = server.fetch(&server.manifest_url("a")).await.0;
            assert_eq!(given, expected, "{code}, {head:?}");
            let heads = image.blob_calls("HEAD");
            assert!(heads.len() == 1 && heads[0].digest == Some(blob), "{heads:#?}");
            server.stop().await;
        }
    }
}

/// One that ignores it is left as soon as it begins to send, and has its place among the requests again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_ignores_ranges_is_not_read() {
    const LARGE: usize = 96 * MIB;
    let image = Image::new(&[LARGE]);
    let (server, _dir) = image
        .server(|config| {
            config.ingest.enabled = false;
            config.upstreams[0].requests_max = 1;
        })
        .await;
    let (layer, config) = (image.blobs[0].0, image.blobs[1]);
    image.origin.always(gets(layer), Fault::IgnoreRange);
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    let body = server.fetch(&server.blob_url(&config.0)).await.1.unwrap();
    assert_eq!(body.len(), config.1);
    let sent = image.origin.gets(&layer);
    assert!(sent.len() == 1 && !sent[0].complete, "{sent:#?}");
    // What the sockets between the two take.
    assert!(sent[0].body_sent < LARGE as u64 / 2, "{sent:#?}");
    server.stop().await;
}

/// Upstreams in trouble send empty bodies.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_place_of_a_blob_withholds_the_image() {
    let image = Image::new(&[1000]);
    let blob = image.blobs[0].0;
    image.origin.add_blob_as(REPOSITORY, blob, Vec::new());
    let asked = [Fault::DelayHeaders(Duration::ZERO), Fault::IgnoreRange];
    for faults in asked
        .into_iter()
        .flat_map(|fault| [vec![fault.clone()], vec![fault, Fault::NoLength]])
    {
        let (server, _dir) = image.server(|config| config.ingest.enabled = false).await;
        image.origin.clear_faults();
        for fault in &faults {
            image.origin.always(gets(blob), fault.clone());
        }
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 502, "{faults:?}");
        server.stop().await;
    }
}

/// A head is no byte, whether ranges are ignored or not; nor is a way to where we do not go.
#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_brings_nothing_withholds_the_image() {
    let image = Image::new(&[1000]);
    let blob = image.blobs[0].0;
    let cut = Fault::Truncate { after: 0 };
    let elsewhere = Fault::Redirect {
        location: "http://169.254.1.1/blob".into(),
    };
    for faults in [vec![cut.clone()], vec![Fault::IgnoreRange, cut], vec![elsewhere]] {
        let (server, _dir) = image.server(|config| config.ingest.enabled = false).await;
        image.origin.clear_faults();
        for fault in &faults {
            image.origin.always(gets(blob), fault.clone());
        }
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 502, "{faults:?}");
        server.stop().await;
    }
}

/// An index is worth nothing to who chooses its mirror by it, if its image's manifest cannot be had. One that was never pushed
/// says nothing of the others.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_withheld_while_its_images_manifest_cannot_be_had() {
    let image = Image::new(&[1000]);
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let child = json!({ "mediaType": OCI_MANIFEST, "digest": image.manifest, "size": 1,
                        "platform": { "os": "linux", "architecture": own } });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] });
    image
        .origin
        .add_manifest(REPOSITORY, Some("multi"), OCI_INDEX, index.to_string());
    for (code, expected) in [(404, 200), (429, 429), (503, 502)] {
        let (server, _dir) = image.server(|_| {}).await;
        image.origin.clear_faults();
        image.origin.always(gets(image.manifest), status(code));
        for _ in 0..2 {
            assert_eq!(server.fetch(&server.manifest_url("multi")).await.0, expected, "{code}");
        }
        server.stop().await;
    }
}

/// A blob of one unit is here, and right, before its image's manifest is given: who is given that will not be given another.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_that_is_wrong_withholds_the_image() {
    let image = Image::new(&[1000, 700_000, 3 * MIB]);
    for (blob, size) in &image.blobs {
        let faults = [
            Fault::WrongByte { at: 9 },
            Fault::WrongByte { at: *size as u64 - 1 },
            Fault::Truncate {
                after: *size as u64 / 2 + 1,
            },
        ];
        for fault in faults {
            let (server, _dir) = image.server(|_| {}).await;
            image.origin.always(gets(*blob), fault.clone());
            let given = server.fetch(&server.manifest_url("a")).await.0;
            // All of a larger one would have to be waited for.
            let expected = if *size > MIB { 200 } else { 502 };
            assert_eq!(given, expected, "{size}, {fault:?}");
            server.stop().await;
        }
        // Not a byte of it, however large it is.
        let (server, _dir) = image.server(|_| {}).await;
        image.origin.always(gets(*blob), Fault::Truncate { after: 0 });
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 502, "{size}");
        server.stop().await;
    }
}

/// What arrives slowly is not waited for until it is here.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_that_comes_slowly_withholds_nothing() {
    let image = Image::new(&[1000, 700_000]);
    let (server, _dir) = image.server(|_| {}).await;
    let gates: Vec<_> = image.blobs.iter().map(|b| image.origin.hold(gets(b.0), 10)).collect();
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    gates.iter().for_each(|gate| gate.open());
    for (blob, size) in &image.blobs {
        assert_eq!(server.fetch(&server.blob_url(blob)).await.1.unwrap().len(), *size);
        assert_eq!(image.origin.bytes_sent(blob), *size as u64, "each byte once");
    }
    server.stop().await;
}

/// What an earlier fetch has left proves nothing: the blob may be gone since.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_which_some_is_here_is_asked_about() {
    let image = Image::new(&[3 * MIB]);
    let (server, dir) = image.server(|config| config.ingest.enabled = false).await;
    let blob = image.blobs[0].0;
    let part = server.http.get(server.blob_url(&blob)).header("Range", "bytes=0-99");
    assert_eq!(part.send().await.unwrap().status(), 206);
    let map = server
        .app
        .originals
        .partial_path(&blob, support::UPSTREAM)
        .with_extension("map");
    until("a unit is kept", || map.exists()).await;
    server.stop().await;
    let again = |fault: Fault| {
        image.origin.clear_faults();
        image.origin.clear_calls();
        image.origin.always(gets(blob), fault);
        Server::with(config(&image.origin, dir.path()))
    };
    let server = again(status(403)).await;
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 403);
    server.stop().await;
    let server = again(Fault::DelayHeaders(Duration::ZERO)).await;
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    assert!(server.fetch(&server.blob_url(&blob)).await.1.unwrap().len() == 3 * MIB);
    // What was left is not fetched again, but for a byte.
    assert_eq!(image.origin.bytes_sent(&blob), 2 * MIB as u64 + 1);
    server.stop().await;
}

/// An image whose layers are converted is given to nodes that fetch no blobs: it costs a byte each.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_image_that_is_converted_first_bytes_are_fetched() {
    let synthetic = SyntheticImage::seeded(5);
    let origin = Origin::with_image(REPOSITORY, "a", &synthetic);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&origin, dir.path()).await;
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    for layer in &synthetic.layers {
        server.anybody().ready(&layer.digest).await;
    }
    let (originals, store) = (server.app.originals.clone(), server.app.store.clone());
    let config = synthetic.config_digest;
    let blobs: Vec<_> = synthetic.layers.iter().map(|l| l.digest).chain([config]).collect();
    until("all is known", || {
        blobs.iter().all(|b| originals.path(b).exists())
            && store.diff_ids(&synthetic.manifest_digest).unwrap().is_some()
    })
    .await;
    let paths: Vec<_> = blobs.iter().map(|blob| originals.path(blob)).collect();
    server.stop().await;
    drop((originals, store));
    paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    origin.clear_calls();
    let server = Server::start(&origin, dir.path()).await;
    for _ in 0..3 {
        assert_eq!(
            server.fetch(&server.manifest_url(synthetic.manifest_digest)).await.0,
            200
        );
    }
    let calls = origin.calls();
    let of_blobs: Vec<_> = calls.iter().filter(|c| c.is_blob()).collect();
    assert!(of_blobs.iter().all(|c| is_proof(c)), "{of_blobs:#?}");
    assert!(!of_blobs.is_empty() && of_blobs.len() <= blobs.len(), "{of_blobs:#?}");
    server.stop().await;
}
