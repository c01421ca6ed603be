//! A layer, or all of them, that the shim cannot show as before when it comes back: it starts, shows them in another way or says
//! that it cannot, and others are as ever.
//!
//! In: a shim that was killed, with its mount kept or with nothing left but its disk, and something that is really in the way.
//! Out: what containers read, what calls say, what `status` and metrics tell. Not here: a cache that cannot be opened at all
//! (`unopened.rs`), damage that is found later (`lazy_fuse/damage.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use headstart_layer_format::ChainId;
use headstart_shim::cli::ask;
use headstart_shim::config::Config;
use headstart_shim::observe::status::Status;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tonic::Code;

use crate::disk::Disk;
use crate::node::{Kind, LONG, Node, SHIM};
use crate::takeover::{eventually, read_all};

/// Calls that cannot be answered well are answered soon. No server is waited for, so this is for slow machines.
const SOON: Duration = Duration::from_secs(60);

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().unwrap();
    assert!(status.success(), "{program} {arguments:?} {}", path.display());
}

fn status(node: &Node) -> Status {
    let socket = Config::load(Some(&node.configure())).unwrap().admin_socket();
    serde_json::from_slice(&ask(&socket, "/status").unwrap()).unwrap()
}

/// What `headstart-shim status`, or another word, prints.
fn printed(node: &Node, word: &str) -> String {
    let output = Command::new(SHIM)
        .arg(word)
        .arg("--config")
        .arg(node.configure())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a series.
fn metric(node: &Node, series: &str) -> u64 {
    let socket = Config::load(Some(&node.configure())).unwrap().admin_socket();
    let text = String::from_utf8(ask(&socket, "/metrics").unwrap()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{series} in {text}")).parse().unwrap()
}

/// By its place among the image's layers.
fn shown_by(node: &Node) -> BTreeMap<usize, String> {
    let status = status(node);
    let layers = status.images.iter().flat_map(|image| &image.layers);
    let place = |digest| node.layers.iter().position(|l| l.digest == digest).unwrap();
    layers
        .map(|layer| (place(layer.digest), layer.shown_by.clone().unwrap()))
        .collect()
}

/// The image's chains, the lowest layer's first.
fn chains(node: &Node) -> Vec<String> {
    let diffs: Vec<_> = node.layers.iter().map(|l| *l.toc.diff_id()).collect();
    ChainId::chain(&diffs).iter().map(ToString::to_string).collect()
}

/// Refused, soon, and with a reason that names the layer.
fn refused(node: &Node, chain: &str, layer: usize) {
    let (client, begun) = (node.client(), Instant::now());
    let outcome = node.runtime.block_on(client.prepare("refused", chain, &[]));
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let digest = node.layers[layer].digest.to_string();
    assert!(error.message().contains(&digest), "{error}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let names = node.runtime.block_on(client.names(&[]));
    assert!(!names.contains(&"refused".to_owned()), "nothing is left of it");
}

/// Ordinary snapshots are made as ever.
fn ordinary(node: &Node) {
    let client = node.client();
    let calls = async {
        client.prepare("extract-ordinary", "", &[]).await.unwrap();
        client.remove("extract-ordinary").await.unwrap();
    };
    node.runtime.block_on(calls);
}

/// As nothing else of it is left, or with everything kept.
fn end(node: &mut Node, reboot: bool) {
    match reboot {
        true => node.reboot(),
        false => node.kill(),
    }
}

fn ready(kind: Kind) -> Node {
    let mut node = Node::new(kind);
    begin(&mut node);
    node
}

/// A container runs and has read everything, and all of it is durable.
fn begin(node: &mut Node) {
    node.start();
    node.run_container();
    read_all(node);
    let bitmaps = || (0..2).all(|at| node.layer_dir(at).join("bitmap").exists());
    eventually("what was read is durable", bitmaps);
    std::thread::sleep(Duration::from_millis(200));
}

/// Something mounted, until the value is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(at.to_owned())
    }

    /// The directory as it is, on a filesystem of which no kernel mounts an image.
    fn copy_in_memory(at: &Path) -> Self {
        let aside = tempfile::tempdir().unwrap();
        let copy = |from: &Path, to: &Path| run("cp", &["-a", &format!("{}/.", from.display())], to);
        copy(at, aside.path());
        let mounted = Self::tmpfs(at);
        copy(aside.path(), at);
        mounted
    }

    fn read_only(at: &Path) -> Self {
        run("mount", &["--bind", at.to_str().unwrap()], at);
        run("mount", &["-o", "remount,bind,ro"], at);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A file that nobody can remove, not even root, until the value is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn make(path: PathBuf) -> Self {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "stays").unwrap();
        run("chattr", &["+i"], &path);
        Self(path)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        run("chattr", &["-i"], &self.0);
    }
}

fn slot(node: &Node, at: usize) -> String {
    let meta = fs::read(node.layer_dir(at).join("layer")).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
    meta["slot"].to_string()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InTheWay {
    /// The kernel mounts no image of this filesystem.
    Refused,
    /// The image cannot be written.
    Unwritten,
    /// There is a file where the image would be mounted.
    File,
    /// Something else is mounted there.
    Busy,
}

#[test]
fn a_layer_that_cannot_be_mounted_as_an_image_is_shown_by_the_fuse_tree() {
    use InTheWay::{Busy, File, Refused, Unwritten};
    for (what, reboot) in [
        (Refused, true),
        (Refused, false),
        (Unwritten, true),
        (Unwritten, false),
        (File, false),
        (Busy, false),
    ] {
        let mut node = ready(Kind::EROFS);
        assert_eq!(shown_by(&node), [(0, "erofs".into()), (1, "erofs".into())].into());
        end(&mut node, reboot);
        let point = node.root().join("img").join(slot(&node, 0));
        if !reboot {
            // Else a successor goes on with it.
            unmount(&point, UnmountFlags::DETACH).unwrap();
        }
        let dir = node.layer_dir(0);
        let _mounted = match what {
            Refused => Some(Mounted::copy_in_memory(&dir)),
            Busy => Some(Mounted::tmpfs(&point)),
            Unwritten => {
                fs::create_dir(dir.join("erofs.new")).unwrap();
                None
            }
            File => {
                fs::remove_dir(&point).unwrap();
                fs::write(&point, "").unwrap();
                None
            }
        };
        node.server.down();
        node.start();
        let by_fuse = what != Busy;
        let expected = if by_fuse { "fuse" } else { "erofs" };
        let all = [(0, expected.into()), (1, "erofs".into())];
        assert_eq!(shown_by(&node), all.into(), "{what:?} {reboot}");
        assert_eq!(node.log().contains("mount-taken-over"), !reboot);
        assert_eq!(node.log().contains("layer-shown-by-fuse"), by_fuse);
        assert_eq!(printed(&node, "status").contains("1 of them shown by fuse"), by_fuse);
        let shown = |by| metric(&node, &format!("headstart_shim_layers_shown{{presentation=\"{by}\"}}"));
        let split = if by_fuse { (1, 1) } else { (2, 0) };
        assert_eq!((shown("erofs"), shown("fuse")), split);
        assert_eq!(metric(&node, "headstart_shim_layers_unavailable"), 0);
        // What was mounted before, and what is from now on.
        if !reboot {
            read_all(&node);
            node.unmount_container();
        }
        node.mount_container();
        read_all(&node);
        node.end_container();
        node.kill();
    }
}

#[test]
fn a_layer_that_the_disk_does_not_give_back_costs_nobody_the_others() {
    for (kind, reboot) in [(Kind::EROFS, true), (Kind::EROFS, false), (Kind::FUSE, false)] {
        let mut node = ready(kind);
        end(&mut node, reboot);
        let read_only = Mounted::read_only(&node.layer_dir(1));
        node.server.down();
        let begun = Instant::now();
        node.start();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        let all = chains(&node);
        refused(&node, &all[1], 1);
        ordinary(&node);
        // The layer below it is as ever.
        let client = node.client();
        let view = node.runtime.block_on(client.view("view", &all[0], &[])).unwrap();
        for at in 0..8 {
            let path = Path::new(&view[0].source).join(format!("a{at}"));
            let expected = node.files().into_iter().find(|(p, _)| p.ends_with(format!("a{at}")));
            assert!(fs::read(path).unwrap() == *expected.unwrap().1);
        }
        if !reboot {
            // The container that had it reads what it can, and is told of the rest.
            let files = node.files();
            let read = std::thread::spawn(move || {
                for (path, expected) in files {
                    let is_lower = path.file_name().unwrap().to_str().unwrap().starts_with('a');
                    match fs::read(path) {
                        Ok(bytes) => assert!(bytes == *expected),
                        Err(_) => assert!(!is_lower),
                    }
                }
            });
            eventually("its reads end", || read.is_finished());
            read.join().unwrap();
        }
        assert_eq!(metric(&node, "headstart_shim_layers_unavailable"), 1);
        assert_eq!(status(&node).images[0].layers_unavailable, 1);
        let text = printed(&node, "status");
        assert!(
            text.contains("2 lazy layers") && text.contains("1 of them NOT AVAILABLE"),
            "{text}"
        );

        assert!(printed(&node, "doctor").contains("1 layers of images are not available"));

        // A server has it again, and the disk takes it.
        drop(read_only);
        node.server_up();
        if !reboot {
            node.unmount_container();
        }
        node.mount_container();
        read_all(&node);
        assert_eq!(metric(&node, "headstart_shim_layers_unavailable"), 0);
    }
}

/// No mount at all: the node is an ordinary one until the next start, which has everything again.
#[test]
fn a_node_without_its_mount_says_so_and_keeps_what_it_has() {
    for without_device in [true, false] {
        let mut node = ready(Kind::EROFS);
        node.reboot();
        node.server.down();
        let mnt = node.root().join("mnt");
        node.without_fuse = without_device;
        if !without_device {
            fs::remove_dir(&mnt).unwrap();
            fs::write(&mnt, "").unwrap();
        }
        node.start();
        let all = chains(&node);
        for (at, chain) in all.iter().enumerate() {
            // Of the chain, the top layer is asked for first.
            refused(&node, chain, at);
        }
        ordinary(&node);
        // A pull is an ordinary one.
        let chain = ChainId::of(b"another").to_string();
        let labels = [("containerd.io/snapshot.ref", chain.as_str())];
        let client = node.client();
        node.runtime.block_on(client.prepare("extract", "", &labels)).unwrap();
        let seen = status(&node);
        assert_eq!(seen.obstacle.as_deref(), Some("no_mount"));
        assert_eq!((seen.snapshots.lazy, seen.images[0].layers_unavailable), (2, 2));
        assert_eq!(metric(&node, "headstart_shim_layers_unavailable"), 2);
        node.kill();

        node.without_fuse = false;
        if !without_device {
            fs::remove_file(&mnt).unwrap();
        }
        node.start();
        assert_eq!(metric(&node, "headstart_shim_layers_unavailable"), 0);
        node.mount_container();
        read_all(&node);
    }
}

/// Left by whoever, and in nobody's way.
#[test]
fn what_cannot_be_cleared_away_stops_no_start() {
    for reboot in [true, false] {
        let mut node = Node::new(Kind::EROFS);
        // Not every filesystem has files that stay.
        let _disk = Disk::make_at(node.dir.path(), node.root(), 64 << 20);
        begin(&mut node);
        end(&mut node, reboot);
        let _stay = ["probe/file", "img/4711/file"].map(|name| Immutable::make(node.root().join(name)));
        let half_made = node.root().join("snapshots/new-99/fs");
        fs::create_dir_all(&half_made).unwrap();
        let _busy = Mounted::tmpfs(half_made.parent().unwrap());
        node.start();
        assert_eq!(node.log().contains("mount-taken-over"), !reboot);
        assert_eq!(shown_by(&node), [(0, "erofs".into()), (1, "erofs".into())].into());
        if reboot {
            node.mount_container();
        }
        read_all(&node);
        // Above the number that is taken.
        let client = node.client();
        let new = node.runtime.block_on(client.prepare("new", "", &[])).unwrap();
        assert!(new[0].source.ends_with("/100/fs"), "{}", new[0].source);
        drop(client);
        node.end_container();
        node.stop();
        assert!(!node.has_holder());
    }
}

/// A disk that has turned read-only: whoever waits for the mount is served when it is as before soon, and is told if it is not.
#[test]
fn a_root_that_cannot_be_written_leaves_no_reader_waiting() {
    std::thread::scope(|threads| {
        for kind in [Kind::EROFS, Kind::FUSE] {
            for passes in [true, false] {
                threads.spawn(move || read_only_root(kind, passes));
            }
        }
    });
}

fn read_only_root(kind: Kind, passes: bool) {
    let mut node = Node::new(kind);
    fs::create_dir(node.root()).unwrap();
    let root = node.root();
    run("mount", &["--bind", root.to_str().unwrap()], &root);
    let _bound = Mounted(root.clone());
    run("mount", &["--make-private"], &root);
    node.start();
    node.run_container();
    node.kill();
    run("mount", &["-o", "remount,bind,ro"], &root);
    let (path, expected) = node.files().pop().unwrap();
    let reader = std::thread::spawn(move || Ok::<_, std::io::Error>(fs::read(path)? == *expected));
    node.spawn();
    eventually("it tries", || node.log().contains("root-not-locked"));
    assert!(!reader.is_finished());
    if passes {
        run("mount", &["-o", "remount,bind,rw"], &root);
        node.until_up();
        eventually("the reader is served", || reader.is_finished());
        assert!(reader.join().unwrap().unwrap());
        assert!(node.log().contains("mount-taken-over"));
    } else {
        eventually("the reader is told", || reader.is_finished());
        assert!(reader.join().unwrap().is_err());
        assert!(node.log().contains("mount-given-up"), "{}", node.log());
        let mut shim = node.shim.take().unwrap();
        let until = Instant::now() + LONG;
        while shim.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it stays: {}", node.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(node.log().contains("Read-only file system"), "it says why");
        run("mount", &["-o", "remount,bind,rw"], &root);
        node.start();
        node.unmount_container();
        node.mount_container();
    }
    read_all(&node);
    node.end_container();
    node.kill();
    // Before the root itself.
    for point in node.mounts_below().iter().rev() {
        unmount(root.join(point), UnmountFlags::DETACH).unwrap();
    }
}
