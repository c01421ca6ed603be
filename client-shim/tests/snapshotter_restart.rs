//! State survives: every snapshot is there after a restart, and nothing half-made is.
//!
//! In: a state directory as a stop or a kill left it. Out: the same snapshots.
//! Not here: containers that keep running meanwhile (their mounts are the kernel's).

mod support;

use std::fs;

use headstart_layer_format::api::LayerState;
use headstart_shim::proto::snapshots::Kind;
use support::{Harness, code, eventually};
use tonic::Code;

#[tokio::test]
async fn snapshots_are_as_they_were() {
    let h = Harness::start().await;
    let c = &h.client;
    c.prepare("a", "", &[]).await.unwrap();
    c.commit("base", "a", &[("l", "1")]).await.unwrap();
    c.prepare("b", "base", &[("k", "v")]).await.unwrap();
    c.view("v", "base", &[]).await.unwrap();
    c.update("b", &[("k", "w")], &["labels.k"]).await.unwrap();
    c.prepare("gone", "", &[]).await.unwrap();
    c.remove("gone").await.unwrap();
    let mut before = c.list(&[]).await.unwrap();
    let mounts = c.mounts("b").await.unwrap();
    let usage = c.usage("base").await.unwrap();

    let h = h.restart().await;
    let c = &h.client;
    let mut after = c.list(&[]).await.unwrap();
    before.sort_by(|a, b| a.name.cmp(&b.name));
    after.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(before, after);
    assert_eq!(c.mounts("b").await.unwrap(), mounts);
    assert_eq!(c.usage("base").await.unwrap(), usage);
    // Relations too, and numbers are not used twice.
    assert_eq!(code(c.remove("base").await), Code::FailedPrecondition);
    let new = c.prepare("new", "", &[]).await.unwrap();
    assert!(!mounts[0].options.iter().any(|o| o.contains(&new[0].source)));
}

#[tokio::test]
async fn half_made_and_damaged_snapshots_do_not_come_back() {
    let h = Harness::start().await;
    let c = &h.client;
    c.prepare("kept", "", &[]).await.unwrap();
    c.prepare("a", "", &[]).await.unwrap();
    c.commit("base", "a", &[]).await.unwrap();
    c.prepare("child", "base", &[]).await.unwrap();
    let root = h.config.root_dir.clone();
    let snapshots = h.snapshots_dir();
    let stopped = h.stop().await;

    // Killed while making one; power lost before one was told of; killed between the new record and its rename; a record cut
    // short.
    fs::create_dir_all(snapshots.join("new-99/fs")).unwrap();
    fs::create_dir_all(snapshots.join("76/fs")).unwrap();
    fs::write(snapshots.join("76/snapshot.json"), b"").unwrap();
    fs::create_dir_all(snapshots.join("77/fs")).unwrap();
    for dir in fs::read_dir(&snapshots).unwrap() {
        let dir = dir.unwrap().path();
        let record = fs::read_to_string(dir.join("snapshot.json")).unwrap_or_default();
        if record.contains("\"kept\"") {
            fs::write(dir.join("snapshot.json.tmp"), b"{").unwrap();
        }
        if record.contains("\"base\"") {
            fs::write(dir.join("snapshot.json"), &record[..record.len() / 2]).unwrap();
        }
    }

    let h = stopped.start().await;
    assert_eq!(
        h.client.names(&[]).await,
        ["kept"],
        "a child without its parent is of no use"
    );
    eventually("half-made ones are deleted", || {
        fs::read_dir(root.join("trash")).unwrap().count() == 0
    })
    .await;
    assert_eq!(fs::read_dir(root.join("damaged")).unwrap().count(), 3);
    // Above every number that was in use, also by what was half-made.
    let new = h.client.prepare("new", "", &[]).await.unwrap();
    assert!(new[0].source.ends_with("/100/fs"), "{}", new[0].source);
}

#[tokio::test]
async fn lazy_snapshots_need_no_server_to_come_back() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
    let mut parent = String::new();
    for i in 0..2 {
        let chain = image.chain_text(i);
        let labels = [("containerd.io/snapshot.ref", chain.as_str())];
        let prepared = h.client.prepare(&format!("extract-{i}"), &parent, &labels).await;
        assert_eq!(code(prepared), Code::AlreadyExists);
        parent = chain;
    }
    h.node.script().unreachable = true;
    let calls = |h: &Harness| {
        let script = h.node.script();
        (script.image_calls, script.chain_calls, script.present_calls)
    };
    let before = calls(&h);
    let h = h.restart().await;
    assert_eq!(h.client.stat(&parent).await.unwrap().kind(), Kind::Committed);
    let mounts = h.client.prepare("c", &parent, &[]).await.unwrap();
    let lower = support::option(&mounts, "lowerdir").unwrap().to_owned();
    let expected: Vec<_> = [1, 0]
        .map(|i| h.node.lowerdir(&image.layers[i]).display().to_string())
        .into();
    assert_eq!(lower, expected.join(":"));
    assert_eq!(calls(&h), before);

    // A layer that cannot be shown: everything else works, what needs it says so and can be tried again.
    h.client.remove("c").await.unwrap();
    h.node.script().broken.insert(image.layers[1]);
    let h = h.restart().await;
    assert_eq!(h.client.names(&["kind==committed"]).await.len(), 2);
    assert_eq!(code(h.client.prepare("d", &parent, &[]).await), Code::Unavailable);
    h.client.prepare("e", &image.chain_text(0), &[]).await.unwrap();
    h.node.script().broken.clear();
    h.client.prepare("d", &parent, &[]).await.unwrap();
}

#[tokio::test]
async fn a_layer_without_a_snapshot_is_released_at_start() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
    let chain = image.chain_text(0);
    let prepared = h
        .client
        .prepare("x", "", &[("containerd.io/snapshot.ref", &chain)])
        .await;
    assert_eq!(code(prepared), Code::AlreadyExists);
    // Killed after the removal of its snapshot, before the layer's release.
    h.node.script().shown.insert(image.layers[1]);
    let h = h.restart().await;
    let node = h.node.clone();
    eventually("the layer is released", || node.script().released == [image.layers[1]]).await;
    h.client.prepare("c", &chain, &[]).await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let h = Harness::start().await;
    let socket = h.config.socket.clone();
    let second = headstart_shim::app::serve(&h.config, h.node.clone(), Default::default()).await;
    assert!(second.is_err(), "the first still serves");
    assert_eq!(h.client.names(&[]).await.len(), 0);
    let stopped = h.stop().await;
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()); // as kill -9 leaves it
    let h = stopped.start().await;
    h.client.prepare("a", "", &[]).await.unwrap();
}
