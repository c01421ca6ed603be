//! The contract of an ordinary containerd snapshotter, call by call, over its socket.
//!
//! In: the calls containerd makes. Out: the codes, mounts and infos it relies on.
//! Not here: lazy layers (`snapshotter_lazy.rs`), restarts (`snapshotter_restart.rs`).

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use headstart_shim::proto::snapshots::Kind;
use support::{Harness, code, eventually, option};
use tonic::Code;

#[tokio::test]
async fn life_of_a_snapshot() {
    let h = Harness::start().await;
    let c = &h.client;

    let mounts = c.prepare("ns/1/a", "", &[("x", "1")]).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    assert_eq!(mounts[0].options, ["rw", "rbind"]);
    let upper = Path::new(&mounts[0].source);
    assert!(upper.is_dir());
    fs::write(upper.join("file"), b"bottom").unwrap();
    assert_eq!(c.mounts("ns/1/a").await.unwrap(), mounts);

    let info = c.stat("ns/1/a").await.unwrap();
    assert_eq!(
        (info.kind(), info.name.as_str(), info.parent.as_str()),
        (Kind::Active, "ns/1/a", "")
    );
    assert_eq!(info.labels["x"], "1");
    assert!(info.created_at.unwrap().seconds > 1_700_000_000);

    // Labels are replaced by a commit, not inherited.
    c.commit("ns/2/base", "ns/1/a", &[("y", "2")]).await.unwrap();
    let info = c.stat("ns/2/base").await.unwrap();
    assert_eq!(info.kind(), Kind::Committed);
    assert_eq!(
        info.labels.into_iter().collect::<Vec<_>>(),
        [("y".to_string(), "2".to_string())]
    );
    assert_eq!(code(c.stat("ns/1/a").await), Code::NotFound);

    // One layer below: a view is a read-only bind of it, an active one an overlay.
    let view = c.view("ns/3/v", "ns/2/base", &[]).await.unwrap();
    assert_eq!(
        (view[0].r#type.as_str(), view[0].source.as_str()),
        ("bind", upper.to_str().unwrap())
    );
    assert_eq!(view[0].options, ["ro", "rbind"]);
    let active = c.prepare("ns/4/b", "ns/2/base", &[]).await.unwrap();
    assert_eq!(active[0].r#type, "overlay");
    assert_eq!(option(&active, "lowerdir"), upper.to_str());
    for own in ["upperdir", "workdir"] {
        assert!(Path::new(option(&active, own).unwrap()).is_dir());
    }
    c.commit("ns/5/top", "ns/4/b", &[]).await.unwrap();

    // Two layers below: a view is an overlay without an upper directory, top first.
    let view = c.view("ns/6/v", "ns/5/top", &[]).await.unwrap();
    assert_eq!(option(&view, "upperdir"), None);
    let lower: Vec<_> = option(&view, "lowerdir").unwrap().split(':').collect();
    assert_eq!(lower, [option(&active, "upperdir").unwrap(), upper.to_str().unwrap()]);
    assert_eq!(c.mounts("ns/6/v").await.unwrap(), view);
}

#[tokio::test]
async fn every_refusal_has_containerds_code() {
    let h = Harness::start().await;
    let c = &h.client;
    c.prepare("a", "", &[]).await.unwrap();
    assert_eq!(code(c.prepare("a", "", &[]).await), Code::AlreadyExists);
    assert_eq!(code(c.view("a", "", &[]).await), Code::AlreadyExists);
    assert_eq!(code(c.prepare("", "", &[]).await), Code::InvalidArgument);
    assert_eq!(code(c.prepare("b", "absent", &[]).await), Code::NotFound);
    assert_eq!(code(c.prepare("b", "a", &[]).await), Code::InvalidArgument);
    // The refused ones left nothing behind.
    assert_eq!(c.names(&[]).await, ["a"]);
    assert_eq!(fs::read_dir(h.snapshots_dir()).unwrap().count(), 1);

    for result in [
        c.stat("absent").await.map(|_| ()),
        c.mounts("absent").await.map(|_| ()),
        c.usage("absent").await.map(|_| ()),
        c.remove("absent").await,
        c.commit("n", "absent", &[]).await,
        c.update("absent", &[], &[]).await.map(|_| ()),
    ] {
        assert_eq!(code(result), Code::NotFound);
    }

    c.commit("base", "a", &[]).await.unwrap();
    assert_eq!(code(c.commit("again", "base", &[]).await), Code::FailedPrecondition);
    assert_eq!(code(c.mounts("base").await), Code::FailedPrecondition);
    c.view("v", "base", &[]).await.unwrap();
    assert_eq!(code(c.commit("w", "v", &[]).await), Code::FailedPrecondition);
    c.prepare("b", "base", &[]).await.unwrap();
    assert_eq!(code(c.commit("base", "b", &[]).await), Code::AlreadyExists);
    assert_eq!(code(c.commit("", "b", &[]).await), Code::InvalidArgument);
    // ... and `b` is as usable as before.
    c.commit("top", "b", &[]).await.unwrap();
    assert_eq!(code(c.list(&["name=="]).await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_parent_goes_after_its_children() {
    let h = Harness::start().await;
    let c = &h.client;
    let bottom = c.prepare("a", "", &[]).await.unwrap();
    c.commit("base", "a", &[]).await.unwrap();
    c.prepare("b", "base", &[]).await.unwrap();
    c.commit("top", "b", &[]).await.unwrap();
    c.view("v", "top", &[]).await.unwrap();
    assert_eq!(code(c.remove("base").await), Code::FailedPrecondition);
    assert_eq!(code(c.remove("top").await), Code::FailedPrecondition);
    for name in ["v", "top", "base"] {
        c.remove(name).await.unwrap();
        assert_eq!(code(c.remove(name).await), Code::NotFound);
    }
    c.cleanup().await.unwrap();
    assert_eq!(c.names(&[]).await, [""; 0]);
    let trash = h.config.root_dir.join("trash");
    eventually("the files are deleted", || fs::read_dir(&trash).unwrap().count() == 0).await;
    assert!(!Path::new(&bottom[0].source).exists());
    // Names are free again.
    c.prepare("a", "", &[]).await.unwrap();
    c.commit("base", "a", &[]).await.unwrap();
}

#[tokio::test]
async fn labels_change_by_mask() {
    let h = Harness::start().await;
    let c = &h.client;
    c.prepare("a", "", &[("one", "1"), ("containerd.io/gc.root", "r"), ("empty", "")])
        .await
        .unwrap();
    let before = c.stat("a").await.unwrap();
    assert!(!before.labels.contains_key("empty"));

    let sorted = |info: headstart_shim::proto::snapshots::Info| {
        let mut labels: Vec<_> = info.labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        labels.sort();
        labels
    };
    let info = c
        .update("a", &[("two", "2"), ("one", "x")], &["labels.two"])
        .await
        .unwrap();
    assert!(info.updated_at.unwrap().seconds >= before.updated_at.unwrap().seconds);
    assert_eq!(info.created_at, before.created_at);
    assert_eq!(sorted(info), ["containerd.io/gc.root=r", "one=1", "two=2"]);
    // A key with dots, and an absent value that removes.
    let info = c.update("a", &[], &["labels.containerd.io/gc.root"]).await.unwrap();
    assert_eq!(sorted(info), ["one=1", "two=2"]);
    let info = c.update("a", &[("three", "3")], &["labels"]).await.unwrap();
    assert_eq!(sorted(info), ["three=3"]);
    let info = c.update("a", &[("four", "4")], &[]).await.unwrap();
    assert_eq!(sorted(info), ["four=4"]);
    assert_eq!(code(c.update("a", &[], &["parent"]).await), Code::InvalidArgument);
    assert_eq!(sorted(c.stat("a").await.unwrap()), ["four=4"]);
}

#[tokio::test]
async fn list_filters_and_streams_all() {
    let h = Harness::start_with("sync_on_commit = false").await;
    let c = &h.client;
    c.prepare("a", "", &[]).await.unwrap();
    c.commit("base", "a", &[("containerd.io/snapshot.ref", "sha256:ab")])
        .await
        .unwrap();
    for i in 0..120 {
        c.view(&format!("view-{i:03}"), "base", &[]).await.unwrap();
    }
    assert_eq!(c.names(&[]).await.len(), 121); // more than one message
    assert_eq!(c.names(&["kind==view"]).await.len(), 120);
    assert_eq!(c.names(&["kind==committed"]).await, ["base"]);
    assert_eq!(c.names(&["name==view-001", "name==view-002"]).await.len(), 2);
    assert_eq!(
        c.names(&[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#])
            .await,
        ["base"]
    );
    assert_eq!(c.names(&["parent==base,name~=^view-00[0-4]$"]).await.len(), 5);
}

#[tokio::test]
async fn usage_is_what_the_snapshot_itself_allocates() {
    let h = Harness::start().await;
    let c = &h.client;
    let mounts = c.prepare("a", "", &[]).await.unwrap();
    let upper = Path::new(&mounts[0].source);
    let (_, empty) = c.usage("a").await.unwrap();
    assert_eq!(empty, 1);
    fs::write(upper.join("big"), vec![7; 1 << 20]).unwrap();
    fs::hard_link(upper.join("big"), upper.join("same")).unwrap();
    let (size, inodes) = c.usage("a").await.unwrap();
    assert_eq!(inodes, 2);
    c.commit("base", "a", &[]).await.unwrap();
    let (committed, inodes) = c.usage("base").await.unwrap();
    assert_eq!(inodes, 2);
    assert!((1 << 20..2 << 20).contains(&committed), "{size} {committed}");
    c.prepare("b", "base", &[]).await.unwrap();
    assert_eq!(c.usage("b").await.unwrap().1, 1, "parents do not count");
}

#[tokio::test]
async fn the_upper_directory_looks_like_the_root_below_it() {
    let h = Harness::start().await;
    let c = &h.client;
    let mounts = c.prepare("a", "", &[]).await.unwrap();
    let root = Path::new(&mounts[0].source);
    fs::set_permissions(root, fs::Permissions::from_mode(0o1711)).unwrap();
    let chowned = std::os::unix::fs::chown(root, Some(1234), Some(4321)).is_ok(); // only root can
    c.commit("base", "a", &[]).await.unwrap();
    let active = c.prepare("b", "base", &[]).await.unwrap();
    let upper = fs::metadata(option(&active, "upperdir").unwrap()).unwrap();
    assert_eq!(upper.mode() & 0o7777, 0o1711);
    if chowned {
        assert_eq!((upper.uid(), upper.gid()), (1234, 4321));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_wins_and_nobody_is_lost() {
    let h = Harness::start_with("sync_on_commit = false").await;
    let race = |n: usize| {
        let c = h.client.clone();
        tokio::spawn(async move {
            let same = c.prepare("same", "", &[]).await.is_ok();
            let own = format!("own-{n}");
            c.prepare(&own, "", &[]).await.unwrap();
            let committed = c.commit("winner", &own, &[]).await.is_ok();
            c.update("same", &[("last", &own)], &["labels.last"]).await.unwrap();
            (same, committed)
        })
    };
    let races: Vec<_> = (0..16).map(race).collect();
    let (mut same, mut committed) = (0, 0);
    for race in races {
        let (s, w) = race.await.unwrap();
        same += usize::from(s);
        committed += usize::from(w);
    }
    assert_eq!((same, committed), (1, 1));
    assert_eq!(h.client.names(&[]).await.len(), 1 + 1 + 15);

    // A child and the removal of its parent: never both.
    for n in 0..20 {
        let base = format!("base-{n}");
        h.client.prepare("tmp", "", &[]).await.unwrap();
        h.client.commit(&base, "tmp", &[]).await.unwrap();
        let key = format!("child-{n}");
        let (child, removal) = tokio::join!(h.client.prepare(&key, &base, &[]), h.client.remove(&base));
        assert!(child.is_ok() != removal.is_ok(), "{child:?} {removal:?}");
    }
}

/// The labels that clients set for containers in user namespaces, where containerd's configuration says "remap-ids".
#[tokio::test]
async fn a_user_namespace_gets_directories_with_other_owners() {
    let h = Harness::start().await;
    let c = &h.client;
    let bottom = c.prepare("a", "", &[]).await.unwrap();
    let root = Path::new(&bottom[0].source);
    let chowned = std::os::unix::fs::chown(root, Some(5), Some(6)).is_ok(); // only root can
    c.commit("base", "a", &[]).await.unwrap();
    let labels = [
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ];
    if chowned {
        let active = c.prepare("b", "base", &labels).await.unwrap();
        let lower = Path::new(option(&active, "lowerdir").unwrap()).to_owned();
        assert_ne!(lower, root);
        let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!((owner(&lower), owner(root)), ((100_005, 200_006), (5, 6)));
        assert_eq!(c.mounts("b").await.unwrap(), active);
        // The upper directory is not mounted idmapped: it has the owner outside.
        let upper = Path::new(option(&active, "upperdir").unwrap()).to_owned();
        assert_eq!(owner(&upper), (100_005, 200_006));
        let view = c.view("v", "base", &labels).await.unwrap();
        assert_eq!(owner(Path::new(&view[0].source)), (100_005, 200_006));
        // They go with their snapshots.
        c.remove("b").await.unwrap();
        c.remove("v").await.unwrap();
        assert_eq!(fs::read_dir(h.config.root_dir.join("ids")).unwrap().count(), 0);
        // A layer of the container's own, alone: nothing below to be mapped.
        let alone = c.prepare("alone", "", &labels).await.unwrap();
        assert_eq!(alone[0].options, ["rw", "rbind"]);
        assert_eq!(owner(Path::new(&alone[0].source)), (100_000, 200_000));
    }
    let before = c.names(&[]).await;
    for bad in ["0:1", "0:1:1,upperdir=/", "a:b:c"] {
        let labels = [(labels[0].0, bad), labels[1]];
        assert_eq!(
            code(c.prepare("c", "base", &labels).await),
            Code::InvalidArgument,
            "{bad}"
        );
    }
    assert_eq!(code(c.prepare("c", "base", &labels[..1]).await), Code::InvalidArgument);
    assert_eq!(c.names(&[]).await, before);
}
