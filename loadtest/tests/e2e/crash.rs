//! kill -9 in the middle of an ingest, and the index lost.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, Toc, api::LayerState, routes};
use headstart_loadtest::playground::lab::{Lab, RelayedProxy};

use crate::support::{wait_until_ready, with_lab};

/// Fetches every layer both ways and checks every byte against the digests that the image names. Returns the digest of
/// each layer's TOC and seekable blob.
async fn verified(lab: &Lab, proxy: &RelayedProxy) -> BTreeMap<String, (BlobDigest, BlobDigest)> {
    let status = proxy.proxy.image(&lab.image.manifest, 0).await.unwrap().unwrap();
    let mut all = BTreeMap::new();
    for ((layer, (digest, size)), diff_id) in status.layers.iter().zip(&lab.image.layers).zip(&lab.image.diff_ids) {
        let path = format!("/v2/demo/python-app/blobs/{digest}?ns=demo.test");
        let (code, blob) = proxy.proxy.get(&path, "*/*").await.unwrap();
        assert!(code.is_success(), "{path}: {code}");
        assert_eq!((blob.len() as u64, BlobDigest::of(&blob)), (*size, *digest));

        let (code, toc_bytes) = proxy
            .proxy
            .get(&routes::layer_toc(digest), routes::TOC_MEDIA_TYPE)
            .await
            .unwrap();
        assert!(code.is_success(), "toc of {digest}: {code}");
        let toc = Toc::decode(&toc_bytes).unwrap();
        assert_eq!(toc.layer_digest(), digest);
        assert_eq!((toc.diff_id(), layer.diff_id.as_ref()), (diff_id, Some(diff_id)));

        let (code, data) = proxy.proxy.get(&routes::layer_data(digest), "*/*").await.unwrap();
        assert!(code.is_success(), "data of {digest}: {code}");
        assert_eq!(
            rebuilt_diff_id(&toc, &data),
            *toc.diff_id(),
            "tar rebuilt from skeleton and chunks of {digest}"
        );
        all.insert(digest.to_string(), (BlobDigest::of(&toc_bytes), BlobDigest::of(&data)));
    }
    assert_eq!(all.len(), lab.image.layers.len());
    all
}

/// Decompresses and checks every chunk, puts the tar together and hashes it.
fn rebuilt_diff_id(toc: &Toc, blob: &[u8]) -> DiffId {
    let mut space = Vec::with_capacity(toc.chunks().data_size() as usize);
    for chunk in toc.chunks().iter() {
        let frame = &blob[chunk.frame.start.0 as usize..][..chunk.frame.len as usize];
        let raw = zstd::bulk::decompress(frame, chunk.range.len as usize).unwrap();
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
        assert_eq!(space.len() as u64, chunk.range.start.0);
        space.extend_from_slice(&raw);
    }
    let mut tar = Vec::with_capacity(toc.skeleton().tar_size() as usize);
    toc.skeleton()
        .write_tar(&mut tar, |range, out| {
            out.write_all(&space[range.start.0 as usize..][..range.len as usize])
        })
        .unwrap();
    DiffId::of(&tar)
}

#[test]
fn server_killed_in_the_middle_of_an_ingest_and_the_index_deleted_every_byte_is_right() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let mut proxy = lab.proxy("proxy").await.unwrap();
        // Several times, at moments that differ: while it fetches, while it converts, when some layers are done.
        for moment in [Moment::AtOnce, Moment::Converting, Moment::OneReady] {
            lab.announce(&proxy).await.unwrap();
            moment.wait_for(lab, &proxy).await;
            proxy.proxy.kill();
            proxy.proxy.restart().await.unwrap();
        }
        lab.announce(&proxy).await.unwrap();
        wait_until_ready(lab, &proxy).await;
        let before = verified(lab, &proxy).await;

        assert!(proxy.proxy.stop(), "the server did not end cleanly on SIGTERM");
        std::fs::remove_dir_all(proxy.proxy.data_dir().join("index")).unwrap();
        let upstream_before = lab.proxy_link.traffic().down_bytes;
        proxy.proxy.restart().await.unwrap();
        let after = verified(lab, &proxy).await;
        assert_eq!(before, after);
        let refetched = lab.proxy_link.traffic().down_bytes - upstream_before;
        assert!(
            refetched < lab.image.compressed_bytes() / 10,
            "{refetched} bytes were fetched again"
        );
    });
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    AtOnce,
    Converting,
    OneReady,
}

impl Moment {
    async fn wait_for(self, lab: &Lab, proxy: &RelayedProxy) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let status = proxy.proxy.image(&lab.image.manifest, 0).await.unwrap();
            let layers = status.map(|s| s.layers).unwrap_or_default();
            let reached = match self {
                Moment::AtOnce => true,
                Moment::Converting => layers
                    .iter()
                    .any(|l| l.state == LayerState::Ready || l.converted.is_some_and(|bytes| bytes > 0)),
                Moment::OneReady => layers.iter().any(|l| l.state == LayerState::Ready),
            };
            if reached {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{self:?} was not reached in a minute");
    }
}
