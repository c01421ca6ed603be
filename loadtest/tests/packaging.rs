//! The shim's tarball: installed, installed again, upgraded over edited files, removed; on this Debian and on forky's.
//!
//! In: scripts/package.sh, packaging/install.sh, a directory as another root. Out: what is there afterwards.
//! Not here: systemd and the kubelet (`client-shim/tests/survival/{service,daemonset}.rs`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headstart_loadtest::playground::{
    debian_tree::{DebianTree, Suite},
    site::Site,
    workdir::WorkDir,
};

const SHIM: &str = "usr/local/bin/headstart-shim";
const UNIT: &str = "usr/local/lib/systemd/system/headstart-shim.service";
const CONFIG: &str = "etc/headstart/shim.toml";
const HOSTS: &str = "etc/containerd/certs.d/_default/hosts.toml";
const SERVER: &str = "http://10.1.2.3:5080";

fn run(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// A bundle, unpacked. Its program is a stand-in: a debug build is large, and compressing it slow.
fn bundle(dir: &Path) -> PathBuf {
    let program = dir.join("headstart-shim");
    fs::write(&program, "#!/bin/sh\necho headstart-shim 9.9.9\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let tarball = dir.join("shim.tar.gz");
    let mut package = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/package.sh"));
    package.arg(&program).arg(&tarball);
    run(package);
    let first = fs::read(&tarball).unwrap();
    let mut again = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/package.sh"));
    again.arg(&program).arg(&tarball);
    run(again);
    assert!(
        first == fs::read(&tarball).unwrap(),
        "the same files make another tarball"
    );
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&tarball).arg("-C").arg(dir);
    run(tar);
    let name = format!("headstart-shim-9.9.9-{}", std::env::consts::ARCH);
    dir.join(name)
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Everything below `root`, with what would change if a file was written again.
fn listing(root: &Path) -> Vec<(PathBuf, u64, i64)> {
    let mut all = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if !entry.path().ends_with("installed") && !entry.path().ends_with("etc/headstart/server") {
                all.push((entry.path(), meta.ino(), meta.mtime_nsec()));
            }
        }
    }
    all.sort();
    all
}

/// `sh` makes a command that runs a shell with arguments.
fn lives(dir: &Path, sh: impl Fn() -> Command) {
    let bundle = bundle(dir);
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    let install = |action: &str, more: &[&str]| {
        let mut command = sh();
        command
            .arg(bundle.join("install.sh"))
            .arg(action)
            .arg("--root")
            .arg(&root)
            .args(more);
        String::from_utf8(run(command).stdout).unwrap()
    };
    // Without a server containerd is not sent to one.
    assert!(install("install", &[]).contains("no hosts.toml"));
    assert!(!root.join(HOSTS).exists());
    install("install", &["--server", SERVER]);
    assert!(read(&root, CONFIG).contains(&format!("servers = [\"{SERVER}\"]")));
    assert!(read(&root, HOSTS).contains(&format!("[host.\"{SERVER}\"]")));
    let mode = |file: &str| fs::metadata(root.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(SHIM), mode(UNIT), mode(CONFIG)), (0o755, 0o644, 0o644));

    // Again, and nothing is written.
    let before = listing(&root);
    assert!(install("install", &[]).contains("everything is there already"));
    assert_eq!(listing(&root), before);

    // An upgrade replaces what nobody edited, and leaves what somebody did.
    let edited = read(&root, CONFIG).replace("level = \"info\"", "level = \"debug\"");
    fs::write(root.join(CONFIG), &edited).unwrap();
    fs::write(bundle.join("bin/headstart-shim"), "another program").unwrap();
    for file in ["config/shim.toml", "config/containerd/certs.d/_default/hosts.toml"] {
        let text = fs::read_to_string(bundle.join(file)).unwrap();
        fs::write(bundle.join(file), format!("# Of the next version.\n{text}")).unwrap();
    }
    assert!(install("install", &[]).contains("was edited and stays"));
    assert_eq!(read(&root, CONFIG), edited);
    let new = read(&root, &format!("{CONFIG}.new"));
    assert!(new.starts_with("# Of the next version.") && new.contains(SERVER));
    assert!(read(&root, HOSTS).starts_with("# Of the next version."));
    assert_eq!(read(&root, SHIM), "another program");
    // Said once.
    assert!(!install("install", &[]).contains("was edited"));

    let state = root.join("var/lib/headstart-shim");
    fs::create_dir_all(&state).unwrap();
    assert!(install("uninstall", &[]).contains("was edited and stays"));
    assert!(!root.join(SHIM).exists() && !root.join(UNIT).exists() && !root.join(HOSTS).exists());
    assert_eq!(read(&root, CONFIG), edited);
    assert!(state.exists());
    install("purge", &[]);
    assert!(!state.exists());
    for bad in [&["--server", "http://a\"b"][..], &["--server", "a"], &["--what"]] {
        let mut command = sh();
        command.arg(bundle.join("install.sh")).arg("install").args(bad);
        assert!(!command.output().unwrap().status.success(), "{bad:?}");
    }
}

#[test]
fn the_tarball_installs_upgrades_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    lives(dir.path(), || Command::new("sh"));
}

#[test]
fn the_tarball_installs_on_the_next_debian() {
    let site = Site::of_this_executable().unwrap();
    let work = WorkDir::create().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let forky = runtime.block_on(DebianTree::open(Suite::Forky, &site, &work)).unwrap();
    let dir = work.dir("package").unwrap();
    lives(&dir, || forky.command(&work, "sh"));
}
