//! Content codings: none, on either side.
//!
//! In: clients that would take gzip; blobs and manifests that would get smaller. Out: the bytes as they are, which digests,
//! lengths and ranges are about, and an upstream that was asked for nothing else.

use headstart_loadtest::origin::{Call, Listener};
use reqwest::Method;
use serde_json::json;

use crate::{OCI_INDEX, Setup, setup, support::REPOSITORY};

const RANGE: std::ops::Range<usize> = 500..1500;

impl Setup {
    /// What who would take gzip gets: it is whole, or [`RANGE`] of it, and as it is.
    async fn is_plain(&self, url: &str, content: &[u8], in_part: bool) {
        for method in [Method::HEAD, Method::GET] {
            let mut request = self.server.http.request(method.clone(), url);
            request = request.header("accept-encoding", "gzip, zstd;q=0.9, *;q=0.5");
            if in_part {
                request = request.header("range", format!("bytes={}-{}", RANGE.start, RANGE.end - 1));
            }
            let response = request.send().await.unwrap();
            let (status, head) = (response.status().as_u16(), response.headers().clone());
            assert!(matches!(status, 200 | 206), "{method} {url}: {status}");
            assert_eq!(head.get("content-encoding"), None, "{method} {url}, in part: {in_part}");
            let want = match status {
                206 => &content[RANGE],
                _ => content,
            };
            assert_eq!(head["content-length"], want.len().to_string());
            let body = response.bytes().await.unwrap();
            assert!(method == Method::HEAD || body == want, "{url}: other bytes");
            assert!(method == Method::HEAD || (status == 206) == in_part, "{url}: {status}");
        }
    }
}

/// Small blobs, which are answered from memory, and large ones, which are sent from the page cache; from the registry and from
/// where it leads.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_coded_and_nothing_coded_is_asked_for() {
    for redirects in [false, true] {
        let setup = setup().await;
        let Setup { origin, server, .. } = &setup;
        origin.redirect_blobs(redirects);
        for len in [2_000, 3 << 20] {
            let text = |seed: u8| [b"the same again, ", &[seed][..]].concat().into_iter().cycle();
            let [whole, part] = [b'a', b'b'].map(|seed| text(seed).take(len).collect::<Vec<_>>());
            for (in_part, content) in [(false, whole), (true, part)] {
                let url = server.blob_url(&origin.add_blob(REPOSITORY, content.clone()));
                setup.is_plain(&url, &content, in_part).await;
                // The rest of it, if that was a part.
                setup.is_plain(&url, &content, false).await;
                for in_part in [false, true] {
                    setup.is_plain(&url, &content, in_part).await;
                }
            }
        }
        let index = json!({ "schemaVersion": 2, "manifests": [], "annotations": { "a": "same ".repeat(1000) } });
        let index = index.to_string().into_bytes();
        let digest = origin.add_manifest(REPOSITORY, Some("v1"), OCI_INDEX, index.clone());
        for reference in ["v1", "v1", &digest.to_string()] {
            setup.is_plain(&server.manifest_url(reference), &index, false).await;
        }

        let calls = origin.calls();
        let asked = |of: fn(&Call) -> bool| calls.iter().any(|call| call.method == "GET" && of(call));
        assert!(asked(Call::is_blob) && asked(Call::is_manifest));
        assert_eq!(asked(|call| call.listener == Listener::Cdn), redirects);
        for call in &calls {
            assert_eq!(call.accept_encoding.as_deref(), Some("identity"), "{call:#?}");
        }
    }
}
