//! Lazy `Prepare` as containerd goes through it: adoption, decline, one decision per image.
//!
//! In: the labels of CRI, or the chain ID alone, against a scripted server. Out: a committed snapshot that containerd's
//! walk finds, or an ordinary writable snapshot and one log line that says why.
//! Not here: a real server (the end-to-end tests), a real containerd (`snapshotter_containerd.rs`).

mod support;

use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, DiffId, api::LayerState};
use headstart_shim::proto::snapshots::{Info, Kind};
use headstart_shim::snapshotter::decline::DeclineReason;
use support::fake::FakeImage;
use support::log::Log;
use support::{Harness, code, eventually, option};
use tonic::Code;

const REF: &str = "containerd.io/snapshot.ref";

/// What containerd's metadata layer does after ALREADY_EXISTS: walk, demand committed, compare, adopt the name.
async fn adopt(h: &Harness, chain: &str, parent: &str) -> Option<Info> {
    let filter = format!(r#"labels."{REF}"=={chain},parent=="{parent}""#);
    let found = h.client.list(&[&filter]).await.unwrap();
    let info = found
        .into_iter()
        .find(|i| i.kind() == Kind::Committed && i.labels[REF] == chain && i.parent == parent)?;
    Some(h.client.stat(&info.name).await.unwrap())
}

/// One layer of a pull. The adopted name, or, declined, the name it was unpacked and committed under.
async fn pull_layer(h: &Harness, image: &FakeImage, i: usize, parent: &str, cri: bool) -> Result<String, String> {
    let chain = image.chain_text(i);
    let (manifest, layer) = (image.manifest.to_string(), image.layers[i].to_string());
    let mut labels = vec![(REF, chain.as_str())];
    if cri {
        labels.push(("containerd.io/snapshot/cri.manifest-digest", &manifest));
        labels.push(("containerd.io/snapshot/cri.layer-digest", &layer));
        labels.push(("containerd.io/snapshot/cri.image-ref", "example.org/app:1"));
    }
    let key = format!("ns/{i}/extract-{i} {chain}");
    match h.client.prepare(&key, parent, &labels).await {
        Ok(mounts) => {
            assert_eq!(mounts.len(), 1);
            let name = format!("ns/{i}/{chain}");
            h.client.commit(&name, &key, &[(REF, &chain)]).await.unwrap();
            Err(name)
        }
        Err(status) => {
            assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
            let adopted = adopt(h, &chain, parent).await.expect("containerd must find it");
            Ok(adopted.name)
        }
    }
}

/// The whole pull, bottom first.
async fn pull(h: &Harness, image: &FakeImage, cri: bool) -> Vec<Result<String, String>> {
    let mut parent = String::new();
    let mut results = Vec::new();
    for i in 0..image.layers.len() {
        let result = pull_layer(h, image, i, &parent, cri).await;
        parent = result.clone().unwrap_or_else(|name| name);
        results.push(result);
    }
    results
}

fn calls(h: &Harness) -> (usize, usize) {
    h.node.questions()
}

#[tokio::test]
async fn a_ready_image_is_adopted_and_can_be_run() {
    for cri in [true, false] {
        let log = Log::capture();
        let h = Harness::start().await;
        let image = h.node.add_image("image", &["a", "b", "c"], LayerState::Ready);
        let names = pull(&h, &image, cri).await;
        let chains: Vec<_> = (0..3).map(|i| Ok(image.chain_text(i))).collect();
        assert_eq!(names, chains, "named by the raw chain ID");
        // One question per image, and with the chain alone one more to find the image.
        assert_eq!(calls(&h), (1, usize::from(!cri)));
        assert_eq!(log.declines(), [""; 0]);

        let top = h.client.stat(&image.chain_text(2)).await.unwrap();
        assert!(top.labels.contains_key("containerd.io/snapshot/remote"));
        assert_eq!(h.client.usage(&top.name).await.unwrap(), (4096, 7));
        let mounts = h.client.prepare("container", &top.name, &[]).await.unwrap();
        let lower = [2, 1, 0].map(|i: usize| h.node.lowerdir(&image.layers[i]).display().to_string());
        assert_eq!(option(&mounts, "lowerdir"), Some(lower.join(":").as_str()));
        let view = h.client.view("view", &image.chain_text(0), &[]).await.unwrap();
        assert_eq!(
            (view[0].source.as_str(), &view[0].options[..]),
            (lower[2].as_str(), &["ro".into(), "rbind".into()][..])
        );

        // A second pull finds everything without asking anyone.
        let before = calls(&h);
        assert_eq!(pull(&h, &image, cri).await, chains);
        assert_eq!(calls(&h), before);
    }
}

#[tokio::test]
async fn a_container_waits_for_the_tree_of_a_layer_that_its_pull_did_not_wait_for() {
    let h = Harness::start_with("present_timeout_ms = 100").await;
    let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
    // Longer than a server may take, and than what is given to calls of the lazy side beyond that.
    h.node.script().show_delay = Duration::from_millis(2_500);
    let begun = Instant::now();
    assert!(pull(&h, &image, true).await.iter().all(Result::is_ok));
    assert!(begun.elapsed() < Duration::from_millis(2_500) && h.node.script().shown.is_empty());
    let mounts = h.client.prepare("container", &image.chain_text(1), &[]).await.unwrap();
    assert_eq!(option(&mounts, "lowerdir").unwrap().split(':').count(), 2);
    assert_eq!(h.node.script().shown.len(), 2);
}

#[tokio::test]
async fn one_layer_that_is_not_ready_declines_the_whole_image_once() {
    for (state, reason) in [
        (LayerState::Converting, "not_ready"),
        (LayerState::Refused, "refused"),
        (LayerState::Failed, "failed"),
    ] {
        for cri in [true, false] {
            let log = Log::capture();
            let h = Harness::start().await;
            let image = h.node.add_image("image", &["a", "b", "c"], LayerState::Ready);
            h.node.set_state(&image, 2, state);
            let names = pull(&h, &image, cri).await;
            assert!(names.iter().all(|n| n.is_err()), "{names:?}");
            assert_eq!(log.declines(), [reason; 3], "one line for each Prepare");
            assert_eq!(calls(&h).0, 1, "the other layers do not wait again");
            assert_eq!(h.node.script().present_calls, 0);
            // Nothing lazy remains, and the unpacked image can be run.
            let top = names[2].clone().unwrap_err();
            let mounts = h.client.prepare("container", &top, &[]).await.unwrap();
            assert_eq!(option(&mounts, "lowerdir").unwrap().split(':').count(), 3);
        }
    }
}

#[tokio::test]
async fn a_new_pull_asks_again() {
    for cri in [true, false] {
        let h = Harness::start().await;
        let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
        h.node.set_state(&image, 1, LayerState::Converting);
        for name in pull(&h, &image, cri).await.into_iter().rev() {
            h.client.remove(&name.unwrap_err()).await.unwrap();
        }
        h.node.set_state(&image, 1, LayerState::Ready);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        // Not the bottom layer: still the old pull, as far as anyone can tell.
        let base = format!("ns/0/{}", image.chain_text(0));
        h.client.prepare("x", "", &[]).await.unwrap();
        h.client.commit(&base, "x", &[]).await.unwrap();
        assert!(pull_layer(&h, &image, 1, &base, cri).await.is_err());
        // The bottom layer is asked for once in a pull: this is a new one.
        assert!(pull(&h, &image, cri).await.iter().all(|n| n.is_ok()));
    }
}

#[tokio::test]
async fn without_a_server_pulls_are_ordinary_and_it_is_asked_again_later() {
    let log = Log::capture();
    let h = Harness::start_with("no_server_memory_ms = 60000").await;
    let image = h.node.add_image("image", &["a", "b", "c"], LayerState::Ready);
    h.node.script().unreachable = true;
    assert!(pull(&h, &image, false).await.iter().all(|n| n.is_err()));
    assert_eq!(log.declines(), ["no_server"; 3]);
    assert_eq!(calls(&h), (0, 1), "a dead server is not waited for by every layer");
    drop(h);

    for cri in [true, false] {
        let h = Harness::start_with("no_server_memory_ms = 0").await;
        let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
        h.node.script().unreachable = true;
        assert!(pull_layer(&h, &image, 0, "", cri).await.is_err());
        h.client.remove(&format!("ns/0/{}", image.chain_text(0))).await.unwrap();
        h.node.script().unreachable = false;
        assert!(pull_layer(&h, &image, 0, "", cri).await.is_ok(), "the server is back");
        h.client.remove(&image.chain_text(0)).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_the_server_never_saw_is_not_asked_for_layer_by_layer() {
    for cri in [true, false] {
        let log = Log::capture();
        let h = Harness::start().await;
        let image = h.node.add_image("image", &["a", "b", "c"], LayerState::Ready);
        h.node.script().images.clear();
        assert!(pull_layer(&h, &image, 0, "", cri).await.is_err());
        let before = calls(&h);
        let parent = format!("ns/0/{}", image.chain_text(0));
        assert!(pull_layer(&h, &image, 1, &parent, cri).await.is_err());
        assert_eq!(calls(&h), before);
        assert_eq!(log.declines(), ["unknown_image"; 2]);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_declined() {
    let log = Log::capture();
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
    let (bottom, top) = (image.chain_text(0), image.chain_text(1));
    let manifest = image.manifest.to_string();
    let other = BlobDigest::of(b"other").to_string();
    let named = ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str());

    // Another layer than the image has at this chain.
    let layer = ("containerd.io/snapshot/cri.layer-digest", other.as_str());
    h.client
        .prepare("1", "", &[(REF, &bottom), named, layer])
        .await
        .unwrap();
    // A chain that the named image does not have.
    h.client.prepare("2", "", &[(REF, &other), named]).await.unwrap();
    // The upper layer without its parent, and on a wrong one.
    h.client.prepare("3", "", &[(REF, &top), named]).await.unwrap();
    h.client.prepare("4", "", &[]).await.unwrap();
    h.client.commit(&format!("ns/4/{other}"), "4", &[]).await.unwrap();
    h.client
        .prepare("5", &format!("ns/4/{other}"), &[(REF, &top), named])
        .await
        .unwrap();
    assert_eq!(log.declines(), ["mismatch"; 4]);
    // Not a chain ID at all.
    h.client.prepare("6", "", &[(REF, "sha256:zz")]).await.unwrap();
    assert_eq!(log.declines(), ["malformed"]);
    assert_eq!(h.client.names(&["kind==committed"]).await.len(), 1);

    // The TOC of the layer is another layer's.
    h.node
        .script()
        .toc_diff_ids
        .insert(image.layers[0], DiffId::of(b"other"));
    h.client.prepare("7", "", &[(REF, &bottom), named]).await.unwrap();
    assert_eq!(log.declines(), ["mismatch"]);
    let released = h.node.clone();
    eventually("the layer is let go", || {
        released.script().released.contains(&image.layers[0])
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_cannot_be_mounted_declines_the_rest() {
    let log = Log::capture();
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a", "b", "c"], LayerState::Ready);
    h.node.script().broken.insert(image.layers[1]);
    let names = pull(&h, &image, true).await;
    assert_eq!(
        names.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(log.declines(), ["present_failed"; 2]);
    assert_eq!(h.node.script().present_calls, 2);
    // Mixed, it runs.
    let top = names[2].clone().unwrap_err();
    let mounts = h.client.prepare("container", &top, &[]).await.unwrap();
    let lower = option(&mounts, "lowerdir").unwrap();
    assert!(lower.ends_with(h.node.lowerdir(&image.layers[0]).to_str().unwrap()));
}

#[tokio::test]
async fn a_layer_that_would_look_different_from_an_unpacked_one_is_declined() {
    let log = Log::capture();
    let h = Harness::start().await;
    let image = h.node.add_image("implied", &["base", "app"], LayerState::Ready);
    h.node.script().implied.insert(image.layers[1]);
    let pulled = pull(&h, &image, true).await;
    assert_eq!(
        pulled.iter().filter(|l| l.is_ok()).count(),
        1,
        "the base is lazy, the layer on it is not"
    );
    assert_eq!(log.declines(), ["implied_directory"]);
}

#[tokio::test]
async fn a_node_that_cannot_is_an_ordinary_snapshotter() {
    for reason in [DeclineReason::Disabled, DeclineReason::NoMount] {
        let log = Log::capture();
        let h = Harness::start().await;
        let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
        h.node.script().obstacle = Some(reason);
        assert!(pull(&h, &image, true).await.iter().all(|n| n.is_err()));
        assert_eq!(log.declines(), [reason.as_str(); 2]);
        assert_eq!(calls(&h), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_prepares_share_one_question_and_all_find_the_snapshot() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a"], LayerState::Ready);
    h.node.script().image_delay = Duration::from_millis(300);
    let (chain, manifest) = (image.chain_text(0), image.manifest.to_string());
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let (client, chain, manifest) = (h.client.clone(), chain.clone(), manifest.clone());
            tokio::spawn(async move {
                let labels = [
                    (REF, chain.as_str()),
                    ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
                ];
                let prepared = client.prepare(&format!("extract-{i}"), "", &labels).await;
                assert_eq!(code(prepared), Code::AlreadyExists);
                let filter = format!(r#"labels."{REF}"=={chain},parent=="""#);
                assert_eq!(client.names(&[&filter]).await, [chain], "at once, for every caller");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(h.node.script().image_calls, 1);
    assert_eq!(h.client.names(&[]).await, [chain]);
}

#[tokio::test]
async fn another_namespace_with_other_parents_gets_its_own_snapshot() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a", "b"], LayerState::Ready);
    let names = pull(&h, &image, false).await;
    assert!(names.iter().all(|n| n.is_ok()));
    // Elsewhere the same bottom layer was unpacked before lazy loading was switched on, without containerd's label.
    h.client.prepare("other/1/x", "", &[]).await.unwrap();
    let base = format!("other/2/{}", image.chain_text(0));
    h.client.commit(&base, "other/1/x", &[]).await.unwrap();
    let name = pull_layer(&h, &image, 1, &base, false)
        .await
        .expect("lazy on an unpacked parent");
    assert_ne!(name, image.chain_text(1));
    // Both stay adoptable, each with its parent.
    assert_eq!(adopt(&h, &image.chain_text(1), &base).await.unwrap().name, name);
    let first = adopt(&h, &image.chain_text(1), &image.chain_text(0)).await.unwrap();
    assert_eq!(first.name, image.chain_text(1));
}

#[tokio::test]
async fn an_unpacked_snapshot_with_the_label_is_adopted_without_a_question() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a"], LayerState::Converting);
    let unpacked = pull_layer(&h, &image, 0, "", true).await.unwrap_err();
    let before = calls(&h);
    assert_eq!(pull_layer(&h, &image, 0, "", true).await, Ok(unpacked));
    assert_eq!(calls(&h), before);
}

#[tokio::test]
async fn a_layer_is_released_with_its_last_snapshot() {
    let h = Harness::start().await;
    // The same blob twice in one image, as images with several empty layers have it.
    let image = h.node.add_image("image", &["a", "a"], LayerState::Ready);
    assert!(pull(&h, &image, true).await.iter().all(|n| n.is_ok()));
    h.client.remove(&image.chain_text(1)).await.unwrap();
    h.client.cleanup().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(h.node.script().released, []);
    // A restart counts the same.
    let h = h.restart().await;
    assert_eq!(h.node.script().released, []);
    h.client.remove(&image.chain_text(0)).await.unwrap();
    let node = h.node.clone();
    eventually("the layer is released", || node.script().released == [image.layers[0]]).await;
    // And can come back.
    assert!(pull(&h, &image, true).await.iter().all(|n| n.is_ok()));
}

#[tokio::test]
async fn stats_and_removals_do_not_wait_for_a_slow_server() {
    let h = Harness::start().await;
    let image = h.node.add_image("image", &["a"], LayerState::Ready);
    h.node.script().image_delay = Duration::from_secs(3600);
    let (client, chain) = (h.client.clone(), image.chain_text(0));
    let waiting = tokio::spawn(async move { client.prepare("x", "", &[(REF, &chain)]).await });
    let node = h.node.clone();
    eventually("the question is under way", || node.script().image_calls == 1).await;
    h.client.prepare("a", "", &[]).await.unwrap();
    h.client.stat("a").await.unwrap();
    h.client.usage("a").await.unwrap();
    h.client.update("a", &[("l", "1")], &[]).await.unwrap();
    assert_eq!(h.client.names(&[]).await, ["a"]);
    h.client.remove("a").await.unwrap();
    h.client.cleanup().await.unwrap();
    assert!(!waiting.is_finished());
    waiting.abort();
}
