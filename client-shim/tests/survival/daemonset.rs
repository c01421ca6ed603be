//! docker/kubernetes-shim.yaml, run on a node: what it installs is where it belongs and works, again and with another program, and
//! goes as the file says.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::playground::debian_tree::{DebianTree, Suite};
use headstart_loadtest::playground::{site::Site, workdir::WorkDir};
use headstart_shim::survival::HOLD;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::network::Network;
use crate::node::{self, SHIM};
use crate::pod::{Manifest, Pod};
use crate::readers::Readers;
use crate::server::FakeServer;
use crate::support::Client;

const PROGRAM: &str = "/usr/local/bin/headstart-shim";
const UNIT: &str = "/usr/local/lib/systemd/system/headstart-shim.service";
const CONFIG: &str = "/etc/headstart/shim.toml";
const HOSTS: &str = "/etc/containerd/certs.d/_default/hosts.toml";
const CA: &str = "/etc/headstart/ca.pem";
const SOCKET: &str = "/run/headstart/shim.sock";
const MOUNT: &str = "/var/lib/headstart-shim/mnt";
/// What the file has for an address.
const SERVER: &str = "https://10.0.0.1:5080";

/// A program that is another, and does the same.
fn another(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    // What is for debuggers is most of it, and it is copied again and again.
    let stripped = Command::new("strip").arg("-o").arg(&path).arg(SHIM).status().unwrap();
    assert!(stripped.success());
    // Behind what the loader looks at.
    let mut file = fs::File::options().append(true).open(&path).unwrap();
    file.write_all(name.as_bytes()).unwrap();
    path
}

fn same(host: &Host, inside: &str, file: &Path) -> bool {
    fs::read(host.path(inside)).unwrap() == fs::read(file).unwrap()
}

/// Numbers of the holders, and of the FUSE mount's device.
fn kept(host: &Host) -> (Vec<String>, String) {
    let processes = fs::read_dir(host.path("/proc")).unwrap().map(|entry| entry.unwrap());
    let holds = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(HOLD.as_bytes())
    };
    let holders = processes.filter(|entry| holds(&entry.path()));
    let table = host.read("/proc/1/mountinfo");
    let mount = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(MOUNT))
        .unwrap();
    (
        holders.map(|entry| entry.file_name().display().to_string()).collect(),
        mount.split(' ').nth(2).unwrap().to_owned(),
    )
}

fn is_active(host: &Host) -> bool {
    host.systemctl(&["is-active", "headstart-shim.service"]).is_ok()
}

struct Rig {
    runtime: Runtime,
    server: FakeServer,
    host: Host,
    programs: [PathBuf; 2],
    _network: Network,
    // Last: what is mounted there goes first.
    _work: WorkDir,
}

impl Rig {
    fn new() -> Self {
        let work = WorkDir::create().unwrap();
        let site = Site::of_this_executable().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let tree = runtime
            .block_on(DebianTree::open(Suite::Bookworm, &site, &work))
            .unwrap();
        let network = Network::new();
        let host = Host::boot(&work.dir("host").unwrap(), tree.path(), &network);
        Self {
            server: network.inside(FakeServer::start),
            programs: ["first", "second"].map(|name| another(work.path(), name)),
            runtime,
            host,
            _network: network,
            _work: work,
        }
    }

    fn client(&self) -> Client {
        self.runtime.block_on(Client::connect(&self.host.path(SOCKET), None))
    }
}

#[test]
fn the_daemon_set_installs_upgrades_and_goes() {
    let rig = Rig::new();
    let (host, [first, second]) = (&rig.host, &rig.programs);
    let authority = CertificateParams::new(Vec::new()).unwrap();
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    // What an operator has to change is the servers' address.
    let manifest = Manifest::read(|text| {
        assert_eq!(text.matches(SERVER).count(), 2);
        text.replace(SERVER, &rig.server.url())
    });
    let pod = Pod::run("one", &manifest, first, host, Some(&authority));
    assert!(same(host, PROGRAM, first));
    assert!(host.path(UNIT).is_file());
    assert_eq!(host.read(CONFIG), manifest.config("shim.toml"));
    assert_eq!(host.read(HOSTS), manifest.config("hosts.toml"));
    assert_eq!(host.read(CA), authority);
    assert!(is_active(host), "{}", host.log());
    assert_eq!(
        host.systemctl(&["is-enabled", "headstart-shim.service"]).unwrap(),
        "enabled"
    );
    // The doctor has looked at the node, and not at the container: it has asked the shim that runs there.
    let (log, process) = (pod.log(), host.property("MainPID"));
    assert!(log.contains(&format!("installed {PROGRAM}")), "{log}");
    let is_well = |line: &str| {
        line.starts_with("ok ") && line.contains("shim.running") && line.ends_with(&format!("process {process}"))
    };
    assert!(log.lines().any(is_well), "{log}");
    assert!(log.contains("layers are shown by erofs"), "{log}");

    // A container of an image, of which most is not here.
    let layers = vec![node::layer("a", 1), node::layer("b", 2)];
    let image = BlobDigest::of(b"manifest");
    rig.server.serve_image(image, &layers);
    let client = rig.client();
    let chain = node::pull(&rig.runtime, &client, image, &layers);
    let mounts = rig.runtime.block_on(client.prepare("container", &chain, &[])).unwrap();
    let options = mounts[0].options.join(",");
    let mounted = host
        .command("mount")
        .args(["-t", "overlay", "overlay", "-o", &options, "/mnt"])
        .status();
    assert!(mounted.unwrap().success());
    let readers = Readers::start(2, node::files(&host.path("/mnt"), &layers));
    readers.until_all_go_on();
    let before = kept(host);
    assert_eq!(before.0.len(), 1, "a holder, as systemd is older than 254");
    drop(client);

    // The pods are replaced: another program, by the same file.
    drop(pod);
    assert!(is_active(host), "what runs is the host's");
    let pod = Pod::run("two", &manifest, second, host, Some(&authority));
    assert!(same(host, PROGRAM, second), "{}", pod.log());
    let running = host.read(&format!("/proc/{}/cmdline", host.property("MainPID")));
    assert!(running.starts_with(PROGRAM));
    let exe = host.path(&format!("/proc/{}/exe", host.property("MainPID")));
    assert!(
        fs::read(exe).unwrap() == fs::read(second).unwrap(),
        "it was started anew"
    );
    assert_eq!(kept(host), before, "holder and mount are the same");
    readers.until_all_go_on();
    let process = host.property("MainPID");

    // And again, by the same image: nothing happens.
    drop(pod);
    let pod = Pod::run("three", &manifest, second, host, Some(&authority));
    assert!(pod.log().contains("everything is there already"), "{}", pod.log());
    assert_eq!(host.property("MainPID"), process);
    readers.stop();

    assert!(host.command("umount").arg("/mnt").status().unwrap().success());
    let client = rig.client();
    rig.runtime.block_on(client.remove("container")).unwrap();
    drop(client);
    pod.exec(&manifest.removal());
    assert!(!is_active(host));
    for gone in [PROGRAM, UNIT, CONFIG, HOSTS, CA, "/etc/headstart", SOCKET] {
        assert!(!host.path(gone).exists(), "{gone}");
    }
    let links = Command::new("find")
        .arg(host.path("/etc/systemd"))
        .args(["-name", "headstart*"])
        .output();
    assert_eq!(String::from_utf8(links.unwrap().stdout).unwrap(), "");
    assert!(!host.read("/proc/1/mountinfo").contains(MOUNT));
    drop(pod);
    drop(rig);
}

/// The secret is optional: without one the shim and containerd trust whom the image trusts, and both have the file that their
/// configuration names.
#[test]
fn the_daemon_set_needs_no_authority_of_ones_own() {
    let rig = Rig::new();
    let manifest = Manifest::read(|text| text);
    let pod = Pod::run("one", &manifest, &rig.programs[0], &rig.host, None);
    assert!(is_active(&rig.host), "{}{}", pod.log(), rig.host.log());
    assert!(rig.host.read(CA).contains("BEGIN CERTIFICATE"));
    rig.runtime.block_on(rig.client().names(&[]));
    // This host knows no authorities of its own. The shim starts also if those files are gone: its mounts and ordinary pulls are
    // worth more than one server.
    fs::remove_file(rig.host.path(CA)).unwrap();
    rig.host.systemctl(&["restart", "headstart-shim.service"]).unwrap();
    rig.runtime.block_on(rig.client().names(&[]));
    assert!(rig.host.log().contains("the node's identity does not load"));
    drop(pod);
}
