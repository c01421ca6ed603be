//! A real containerd on our snapshotter: import, unpack, run, adopt, collect garbage.
//!
//! In: containerd, runc and ctr of this machine. Out: containers that ran on our mounts.
//! Not here: pulls from a registry and real lazy layers (the end-to-end tests).

mod support;

use std::time::Duration;

use headstart_layer_format::api::LayerState;
use headstart_shim::proto::snapshots::Kind;
use support::containerd::{self, Containerd};
use support::{Client, Harness, code, eventually, oci};
use tonic::Code;

const NAME: &str = "example.org/smoke:1";

/// Says so and returns true where these tests cannot run.
fn skip() -> bool {
    let obstacle = containerd::obstacle();
    if let Some(why) = &obstacle {
        eprintln!("SKIPPED: containerd smoke test: {why}");
    }
    obstacle.is_some()
}

async fn import(containerd: &Containerd, archive: &oci::Archive) {
    let path = archive.path.to_str().unwrap();
    containerd
        .ctr(&["images", "import", "--snapshotter", "headstart", path])
        .await;
}

async fn run(containerd: &Containerd, id: &str, script: &str) -> String {
    containerd
        .ctr(&[
            "run",
            "--rm",
            "--snapshotter",
            "headstart",
            NAME,
            id,
            "/bin/sh",
            "-c",
            script,
        ])
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_image_is_unpacked_run_and_collected() {
    if skip() {
        return;
    }
    let h = Harness::start().await;
    let containerd = Containerd::start(h.dir.path(), &h.config.socket).await;
    let archive = oci::build(&h.dir.path().join("image"), NAME, true);
    import(&containerd, &archive).await;
    let committed = h.client.list(&["kind==committed"]).await.unwrap();
    assert_eq!(committed.len(), 2);
    for info in &committed {
        let (size, inodes) = h.client.usage(&info.name).await.unwrap();
        assert!(size > 0 && inodes >= 3, "{size} {inodes}");
    }

    let script = "cat /greeting /etc/kept; [ -e /etc/removed ] || echo gone; echo new > /etc/kept; mv /greeting /moved; \
                  rm /etc/kept; cat /moved; echo w > /written; cat /written";
    let out = run(&containerd, "first", script).await;
    assert_eq!(
        out, "hello from a snapshot\nkept\ngone\nhello from a snapshot\nw\n",
        "reads, whiteouts, writes, renames, deletes"
    );
    // The next container starts from the image, not from what the first one did.
    assert_eq!(
        run(&containerd, "second", "cat /etc/kept; [ -e /moved ] || echo clean").await,
        "kept\nclean\n"
    );
    // Removed from containerd's sight; its collector tells us when it comes round.
    let client = Client::connect(&containerd.socket, Some("smoke")).await;
    assert_eq!(client.names(&["kind==active"]).await, [""; 0]);
    assert_eq!(h.node.questions(), (0, 0));

    // After a restart of the snapshotter containerd goes on with it.
    let h = h.restart().await;
    // containerd dials again after a pause of its own.
    let mut tries = 0;
    while client.list(&[]).await.is_err() {
        tries += 1;
        assert!(tries < 300, "containerd never came back to the snapshotter");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        run(&containerd, "third", "cat /greeting").await,
        "hello from a snapshot\n"
    );

    containerd.ctr(&["images", "rm", "--sync", NAME]).await;
    let snapshots = h.snapshots_dir();
    eventually("garbage collection removes the snapshots", || {
        std::fs::read_dir(&snapshots).unwrap().count() == 0
    })
    .await;
    containerd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_adopts_lazy_layers_and_runs_on_them() {
    if skip() {
        return;
    }
    let h = Harness::start().await;
    let containerd = Containerd::start(h.dir.path(), &h.config.socket).await;
    let archive = oci::build(&h.dir.path().join("image"), NAME, false);
    let image = h
        .node
        .add_image_of("image", &archive.diff_ids, &["base", "top"], LayerState::Ready);
    for (tree, layer) in archive.trees.iter().zip(&image.layers) {
        let lowerdir = h.node.lowerdir(layer);
        std::fs::create_dir_all(lowerdir.parent().unwrap()).unwrap();
        std::fs::rename(tree, lowerdir).unwrap();
    }

    // What a pull with unpacking does, through containerd's own metadata layer.
    let client = Client::connect(&containerd.socket, Some("smoke")).await;
    let mut parent = String::new();
    for i in 0..2 {
        let chain = image.chain_text(i);
        let key = format!("extract-{i} {chain}");
        // Without a lease only this label keeps containerd's collector away.
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/gc.root", "test"),
        ];
        let prepared = client.prepare(&key, &parent, &labels).await;
        assert_eq!(code(prepared), Code::AlreadyExists);
        let adopted = client.stat(&chain).await.unwrap();
        assert_eq!(
            (adopted.kind(), adopted.parent.as_str()),
            (Kind::Committed, parent.as_str())
        );
        parent = chain;
    }

    // Unpacking finds every layer there, so nothing is unpacked.
    import(&containerd, &archive).await;
    let mut chains = [image.chain_text(0), image.chain_text(1)];
    chains.sort();
    assert_eq!(h.client.names(&["kind==committed"]).await, chains);
    let script =
        "cat /greeting /etc/kept; echo new > /etc/kept; cat /etc/kept; rm /greeting; [ -e /greeting ] || echo gone";
    assert_eq!(
        run(&containerd, "lazy", script).await,
        "hello from a snapshot\nkept\nnew\ngone\n"
    );
    assert_eq!(
        run(&containerd, "again", "cat /greeting").await,
        "hello from a snapshot\n"
    );
    containerd.stop().await;
}
