//! overlayfs on top of lazily shown layers: what a container sees, and what it may do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::{FakeServer, Item, LayerBuilder, Node, What, noise};

pub struct Overlay(PathBuf);

impl Overlay {
    pub fn new(base: &Path, lowers: &[PathBuf]) -> Self {
        let dir = |name: &str| {
            let dir = base.join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (upper, work, merged) = (dir("upper"), dir("work"), dir("merged"));
        let lowers: Vec<String> = lowers.iter().map(|l| l.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}\0",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options)).unwrap();
        Self(merged)
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_container_sees_the_stack_and_can_change_everything() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bottom = LayerBuilder::new()
        .add("etc/a", Item::file("bottom a"))
        .add("etc/b", Item::file("bottom b").mode(0o640).owner(5, 6))
        .add("var/x", Item::file("bottom x"))
        .add("var/y", Item::file("bottom y"))
        .add("usr/bin/tool", Item::file(noise(400_000, 1)).mode(0o4755))
        .add("usr/bin/same", Item::new(What::Link(b"usr/bin/tool".to_vec())))
        .add(
            "usr/bin/ping",
            Item::file("p")
                .xattr("security.capability", &capability)
                .xattr("user.k", b"v"),
        )
        .build(64 << 10);
    let opaque = Item::new(What::Dir {
        opaque: true,
        implied: false,
    });
    let top = LayerBuilder::new()
        .add("etc/a", Item::new(What::Whiteout))
        .add("etc/c", Item::file("top c"))
        .add("var", opaque.mode(0o700))
        .add("var/z", Item::file("top z"))
        .build(64 << 10);
    let server = FakeServer::start();
    server.serve(&bottom);
    server.serve(&top);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let lowers = [node.show(&top), node.show(&bottom)];
    let scratch = tempfile::tempdir().unwrap();
    let overlay = Overlay::new(scratch.path(), &lowers);
    let at = |path: &str| overlay.at(path);
    let names = |path: &str| {
        let mut names: Vec<_> = fs::read_dir(at(path))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };

    assert_eq!(names("etc"), ["b", "c"], "a whiteout hides, also in listings");
    assert!(!at("etc/a").exists());
    assert_eq!(names("var"), ["z"], "an opaque directory hides all below it");
    assert!(!at("var/x").exists());
    assert_eq!(fs::read_to_string(at("etc/b")).unwrap(), "bottom b");
    let tool = fs::metadata(at("usr/bin/tool")).unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o4755);
    assert_eq!(tool.nlink(), 2);
    assert!(fs::read(at("usr/bin/same")).unwrap() == noise(400_000, 1));
    assert_eq!(
        xattr::get(at("usr/bin/ping"), "security.capability").unwrap().unwrap(),
        capability
    );
    assert_eq!(xattr::get(at("usr/bin/ping"), "user.k").unwrap().unwrap(), b"v");

    // A container's doings: append (copies up), delete, rename, replace what was whited out, write below the opaque one.
    let mut appended = fs::OpenOptions::new().append(true).open(at("etc/b")).unwrap();
    std::io::Write::write_all(&mut appended, b"!").unwrap();
    assert_eq!(fs::read_to_string(at("etc/b")).unwrap(), "bottom b!");
    let copied = fs::metadata(at("etc/b")).unwrap();
    assert_eq!((copied.mode() & 0o7777, copied.uid(), copied.gid()), (0o640, 5, 6));
    fs::remove_file(at("etc/c")).unwrap();
    fs::rename(at("usr/bin/ping"), at("usr/pong")).unwrap();
    assert_eq!(
        xattr::get(at("usr/pong"), "security.capability").unwrap().unwrap(),
        capability
    );
    fs::write(at("etc/a"), "new a").unwrap();
    fs::write(at("var/x"), "new x").unwrap();
    fs::remove_dir_all(at("usr/bin")).unwrap();
    assert_eq!(names("etc"), ["a", "b"]);
    assert_eq!(names("usr"), ["pong"]);
    assert_eq!(names("var"), ["x", "z"]);
    assert_eq!(
        fs::read_to_string(lowers[1].join("etc/b")).unwrap(),
        "bottom b",
        "the layer is as it was"
    );
}

#[test]
fn a_node_stops_while_a_container_still_runs() {
    let layer = LayerBuilder::new().add("f", Item::file("f")).build(4096);
    let server = FakeServer::start();
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let (scratch, other) = (
        tempfile::tempdir().unwrap(),
        LayerBuilder::new().add("g", Item::file("g")).build(4096),
    );
    server.serve(&other);
    let overlay = Overlay::new(scratch.path(), &[node.show(&layer), node.show(&other)]);
    assert!(overlay.0.join("f").exists());
    node.stop();
    assert!(!root.path().join("mnt/layers").exists(), "the mount is out of the way");
    let node = Node::open(root.path(), &[&server]);
    assert_eq!(fs::read(node.show(&layer).join("f")).unwrap(), b"f");
}
