//! The promise: the same image, started before it has arrived, and not one byte different.

use headstart_layer_format::api::LayerState;
use headstart_loadtest::{
    check::{Field, Overlook, compare_directories},
    playground::{
        container::Container,
        lab::{Lab, RelayedProxy},
        measure,
        node::{Node, Pulls},
    },
};

use crate::support::{declines, warm_proxy, with_lab};

/// Of the compressed image, more would mean that layers were fetched whole.
const SHARE_MAX: f64 = 0.6;

/// The registry may have handed out the image config, and nothing else by this size.
const CONFIG_BYTES_MAX: u64 = 64 << 10;

async fn assert_same_image(lazy: &Node, ordinary: &Node) {
    let (a, b) = (
        lazy.identity().await.unwrap().unwrap(),
        ordinary.identity().await.unwrap().unwrap(),
    );
    assert_eq!(a.id, b.id);
    assert_eq!(a.repo_tags, b.repo_tags);
    assert_eq!(a.repo_digests, b.repo_digests);
    assert_eq!(
        lazy.target_digest().await.unwrap(),
        ordinary.target_digest().await.unwrap()
    );
}

#[test]
fn a_container_starts_lazily_with_labels_and_is_identical_to_an_ordinary_one() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let ordinary = lab.node("node-o", Pulls::Ordinary, None).await.unwrap();
        ordinary.pull().await.unwrap();
        let proxy = warm_proxy(lab).await;
        starts_lazily_and_is_identical(lab, &proxy, &ordinary, Pulls::Lazy).await;
        starts_lazily_and_is_identical(lab, &proxy, &ordinary, Pulls::LazyFuse).await;
    });
}

/// How many images the kernel shows by itself below the node's directory.
fn erofs_mounts(node: &Node) -> usize {
    let root = node.shim.as_ref().unwrap().root.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|l| l.contains(&root) && l.contains(" - erofs "))
        .count()
}

async fn starts_lazily_and_is_identical(lab: &Lab, proxy: &RelayedProxy, ordinary: &Node, pulls: Pulls) {
    let served_before = proxy.proxy.counters().await.unwrap();
    let lazy = lab.node(&format!("node-{pulls:?}"), pulls, Some(proxy)).await.unwrap();
    let start = measure::start(lab, &lazy, Some(proxy)).await.unwrap();
    assert_eq!(declines(&lazy), Vec::<String>::new());
    match pulls {
        Pulls::LazyFuse => assert_eq!(erofs_mounts(&lazy), 0),
        _ => assert_eq!(erofs_mounts(&lazy), lab.image.layers.len(), "this kernel can"),
    }

    // Not downloaded whole: neither by the wire nor by the server's own account.
    let compressed = lab.image.compressed_bytes();
    assert!(
        (start.proxy_bytes as f64) < compressed as f64 * SHARE_MAX,
        "{start:?} of {compressed}"
    );
    assert!(start.layer_bytes > 0, "{start:?}");
    let served = proxy.proxy.counters().await.unwrap();
    let blobs = ["route=\"blobs\""];
    let name = "headstart_served_bytes_total";
    let blob_bytes = served.sum(name, &blobs) - served_before.sum(name, &blobs);
    assert!(
        blob_bytes < CONFIG_BYTES_MAX as f64,
        "{blob_bytes} bytes of blobs were served"
    );
    let content = lazy.ctr(&["content", "list", "--quiet"]).await.unwrap();
    for (digest, _) in &lab.image.layers {
        assert!(
            !content.contains(&digest.to_string()),
            "the node has layer {digest} whole"
        );
    }

    assert_same_image(&lazy, ordinary).await;

    let chain = lab.image.chain().unwrap();
    let (a, b) = (
        lazy.mount_view(&chain).await.unwrap(),
        ordinary.mount_view(&chain).await.unwrap(),
    );
    let (left, right) = (a.path.clone(), b.path.clone());
    // The top layer's tar has no entry for the root, so an ordinary unpack leaves there the time at which it unpacked.
    let overlook = Overlook::nothing().field_at("", Field::Mtime);
    let differences = tokio::task::spawn_blocking(move || compare_directories(&left, &right, &overlook))
        .await
        .unwrap()
        .unwrap();
    assert!(
        differences.is_empty(),
        "lazy (left) against ordinary (right): {differences}"
    );
    assert!(
        differences.compared > 3_000,
        "only {} paths were compared",
        differences.compared
    );
}

/// Each line must hold; the first that does not ends the script with an error.
const WRITES: &str = r#"set -eu
echo new > /fresh; test "$(cat /fresh)" = new
echo more >> /srv/team/file; test "$(cat /srv/team/file)" = "$(printf 'shared\nmore')"
rm /etc/debian_version; test ! -e /etc/debian_version
mv /etc/issue /etc/moved; test ! -e /etc/issue; grep -q Debian /etc/moved
mkdir /srv/dir; echo x > /srv/dir/a; mv /srv/dir /srv/renamed; test "$(cat /srv/renamed/a)" = x
rm -r /usr/share/bug; mkdir /usr/share/bug; test -z "$(ls -A /usr/share/bug)"
mv /usr/share/base-passwd /usr/share/moved-dir; test -s /usr/share/moved-dir/passwd.master
ln -s /fresh /soft; test "$(cat /soft)" = new
chmod 600 /etc/hostname 2>/dev/null || true; touch /etc/shells; chown 1:1 /etc/shells
truncate -s 3 /srv/sparse; test "$(stat -c %s /srv/sparse)" = 3
echo READY
"#;

#[test]
fn writes_deletes_and_renames_work_and_chain_ids_alone_are_enough() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let proxy = warm_proxy(lab).await;
        // containerd's default: the snapshotter learns no layer digest, only chain IDs.
        let lazy = lab.node("node-c", Pulls::LazyByChainId, Some(&proxy)).await.unwrap();
        let start = measure::start(lab, &lazy, Some(&proxy)).await.unwrap();
        assert_eq!(declines(&lazy), Vec::<String>::new());
        assert!(
            (start.proxy_bytes as f64) < lab.image.compressed_bytes() as f64 * SHARE_MAX,
            "{start:?}"
        );
        let identity = lazy.identity().await.unwrap().unwrap();
        assert_eq!(identity.id, lab.image.config.to_string());
        assert_eq!(
            lazy.target_digest().await.unwrap().unwrap(),
            lab.image.manifest.to_string()
        );

        let output = Container::start(&lazy, "writes", &["sh", "-c", WRITES])
            .unwrap()
            .output()
            .await
            .unwrap();
        assert_eq!(output.trim(), "READY");
        // A second container of the same image sees none of it.
        let check = "test -e /etc/debian_version && test -e /etc/issue && test ! -e /fresh && cat /srv/team/file";
        let output = Container::start(&lazy, "clean", &["sh", "-c", check])
            .unwrap()
            .output()
            .await
            .unwrap();
        assert_eq!(output.trim(), "shared");
    });
}

#[test]
fn a_first_pull_waits_for_the_conversion_and_is_lazy() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let proxy = lab.proxy("proxy").await.unwrap();
        let lazy = lab.node("node-f", Pulls::Lazy, Some(&proxy)).await.unwrap();
        let start = measure::start(lab, &lazy, Some(&proxy)).await.unwrap();
        // A slow machine may take longer than a pull waits by default; then it is ordinary, and starts all the same.
        let declined = declines(&lazy);
        assert!(
            declined.is_empty() || start.pull_ms >= 20_000.0,
            "{declined:#?} {start:?}"
        );
        // The upstream was asked for each byte once, whichever way it went: config and manifests are the little more.
        let compressed = lab.image.compressed_bytes();
        assert!(start.upstream_bytes >= compressed, "{start:?}");
        assert!(
            start.upstream_bytes < compressed + compressed / 10,
            "{start:?} of {compressed}"
        );
        let status = proxy.proxy.image(&lab.image.manifest, 0).await.unwrap().unwrap();
        assert!(
            status.layers.iter().all(|l| l.state == LayerState::Ready),
            "{status:#?}"
        );
    });
}
