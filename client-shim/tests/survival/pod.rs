//! A pod of docker/kubernetes-shim.yaml, as the kubelet runs it: image, volumes, command, all of it as the files of the
//! repository say.
//!
//! In: that file and docker/shim.Dockerfile, a host. Out: a running container, what it printed, commands in it. Invariant: what the
//! files do not say is not done, and what they say that is not known here fails the test.
//! Not here: the host (`host.rs`), what must come of it (`daemonset.rs`).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde_json::Value;

use crate::host::{Host, enter};
use crate::node::LONG;
use crate::systemd::first_child;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const MANIFEST: &str = "docker/kubernetes-shim.yaml";
const DOCKERFILE: &str = "docker/shim.Dockerfile";
/// Where the host has what is the kubelet's.
const KUBELET: &str = "/var/lib/kubelet";

/// Runs in a mount namespace of the container's own, with the host's files: root, then a line for each volume (kind, what, where,
/// access), then the command. A secret's files and a config map's are mounted one by one or as a directory, as they are asked for.
const CONTAINER: &str = r#"
root=$1; shift
mount -t overlay none -o "lowerdir=$root.base,upperdir=$root.upper,workdir=$root.work" "$root"
while [ "$1" != -- ]; do
    what=$1 at=$root$2 access=$3; shift 3
    if [ -d "$what" ]; then mkdir -p "$at"; else mkdir -p "${at%/*}"; [ -e "$at" ] || : >"$at"; fi
    mount --rbind "$what" "$at"
    [ "$access" = rw ] || mount -o remount,bind,ro "$at"
done
shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
cd "$root"
mkdir -p run/old
pivot_root . run/old
umount -l /run/old
exec "$@"
"#;

/// The file, and what an operator has changed in it.
pub struct Manifest {
    text: String,
    documents: Vec<Value>,
}

impl Manifest {
    pub fn read(edit: impl FnOnce(String) -> String) -> Self {
        let text = edit(fs::read_to_string(Path::new(REPOSITORY).join(MANIFEST)).unwrap());
        let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap());
        Self {
            documents: documents.collect(),
            text,
        }
    }

    fn of_kind(&self, kind: &str) -> &Value {
        let mut found = self.documents.iter().filter(|d| d["kind"] == kind);
        let document = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "two of {kind}");
        document
    }

    /// A file of its config map.
    pub fn config(&self, key: &str) -> &str {
        self.of_kind("ConfigMap")["data"][key].as_str().unwrap()
    }

    fn pod(&self) -> &Value {
        &self.of_kind("DaemonSet")["spec"]["template"]["spec"]
    }

    /// What its first comment says to run in a pod to be rid of it.
    pub fn removal(&self) -> Vec<&str> {
        let line = self.text.lines().find(|l| l.contains("exec POD -- ")).unwrap();
        line.split_once(" -- ").unwrap().1.split_whitespace().collect()
    }
}

pub struct Pod {
    process: Child,
    /// Of the container's first process, as it is seen from here.
    first: u32,
    log: PathBuf,
}

impl Pod {
    /// Starts it, and waits until it has nothing more to do. `name`: of this one of the host's pods. `ca`: the secret, if there is one.
    pub fn run(name: &str, manifest: &Manifest, program: &Path, host: &Host, ca: Option<&str>) -> Self {
        let pod = manifest.pod();
        assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&true.into(), &true.into()));
        let containers = pod["containers"].as_array().unwrap();
        let [container] = &containers[..] else {
            panic!("one container")
        };
        assert_eq!(container["securityContext"]["privileged"], true);
        let dir = host.kubelet().join(name);
        let root = dir.join("root");
        for part in ["root", "root.upper", "root.work", "volumes"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        std::os::unix::fs::symlink("../base", dir.join("root.base")).unwrap();
        image(
            &root.with_extension("upper"),
            &host.path("/var/lib/kubelet/base"),
            program,
        );
        let inside = |path: &Path| {
            let below = path.strip_prefix(host.kubelet()).unwrap();
            Path::new(KUBELET).join(below).display().to_string()
        };
        let mut command = host.command("unshare");
        command
            .args(["--mount", "--propagation=private", "sh", "-ec", CONTAINER, "sh"])
            .arg(inside(&root));
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume = pod["volumes"].as_array().unwrap();
            let volume = volume.iter().find(|v| v["name"] == mount["name"]).unwrap();
            let files = dir.join("volumes").join(volume["name"].as_str().unwrap());
            let mut what = match files_of(volume, manifest, ca, &files) {
                Some(host_path) => host_path,
                None => inside(&files),
            };
            if let Some(part) = mount["subPath"].as_str() {
                assert!(files.join(part).is_file(), "{part}");
                what = format!("{what}/{part}");
            }
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            command.args([what.as_str(), mount["mountPath"].as_str().unwrap(), access]);
        }
        command.arg("--");
        for part in ["command", "args"] {
            let words = container[part].as_array().unwrap().iter();
            command.args(words.map(|word| word.as_str().unwrap()));
        }
        let log = dir.join("log");
        let out = File::create(&log).unwrap();
        let process = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        let mut pod = Self { process, first: 0, log };
        pod.until_it_sleeps();
        pod
    }

    fn until_it_sleeps(&mut self) {
        let until = Instant::now() + LONG;
        loop {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the container ended: {ended:?}, {}", self.log());
            // nsenter's child is the container's first process, whatever it runs.
            self.first = first_child(self.process.id()).unwrap_or(0);
            let name = fs::read_to_string(format!("/proc/{}/comm", self.first)).unwrap_or_default();
            if name.trim() == "sleep" {
                return;
            }
            assert!(Instant::now() < until, "it does not come to its end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// As `kubectl exec`.
    pub fn exec(&self, words: &[&str]) -> String {
        let output = enter(self.first, words[0]).args(&words[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {text}");
        text
    }
}

impl Drop for Pod {
    /// As it is deleted.
    fn drop(&mut self) {
        if let Some(first) = rustix::process::Pid::from_raw(self.first.cast_signed()) {
            let _ = rustix::process::kill_process(first, rustix::process::Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// Puts a volume's files into `files`; or says which directory of the host it is.
fn files_of(volume: &Value, manifest: &Manifest, ca: Option<&str>, files: &Path) -> Option<String> {
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        return Some(path.to_owned());
    }
    fs::create_dir_all(files).unwrap();
    if volume["configMap"].is_object() {
        let map = manifest.of_kind("ConfigMap");
        assert_eq!(volume["configMap"]["name"], map["metadata"]["name"]);
        for (key, text) in map["data"].as_object().unwrap() {
            fs::write(files.join(key), text.as_str().unwrap()).unwrap();
        }
    } else {
        assert!(
            volume["secret"].is_object(),
            "a volume of a kind not known here: {volume}"
        );
        match ca {
            Some(ca) => fs::write(files.join("ca.crt"), ca).unwrap(),
            None => assert_eq!(volume["secret"]["optional"], true),
        }
    }
    None
}

/// The image's layer over Debian's tree, by the Dockerfile's lines after its last FROM.
fn image(layer: &Path, base: &Path, program: &Path) {
    let text = fs::read_to_string(Path::new(REPOSITORY).join(DOCKERFILE)).unwrap();
    let text = text.replace("\\\n", " ");
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().rposition(|l| l.starts_with("FROM ")).unwrap();
    assert!(lines[last].ends_with("debian:bookworm-slim"), "{}", lines[last]);
    let at = |path: &str| layer.join(path.trim_start_matches('/'));
    for line in &lines[last + 1..] {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["COPY", "--from=build", from, to] => {
                assert!(from.ends_with("/target/release/headstart-shim"), "{line}");
                copy(program, &at(to));
            }
            ["COPY", from, to] => copy(&Path::new(REPOSITORY).join(from), &at(to)),
            // What it makes of the package is all that the script wants of it.
            ["RUN", "apt-get", "update", ..] => {
                assert!(words.contains(&"ca-certificates"), "{line}");
                let all = base.join("usr/share/ca-certificates/mozilla");
                let files = fs::read_dir(all).unwrap().map(|f| fs::read(f.unwrap().path()).unwrap());
                let to = at("/etc/ssl/certs/ca-certificates.crt");
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(to, files.collect::<Vec<_>>().concat()).unwrap();
            }
            ["RUN", "mkdir", "-p", dir, "&&", "cp", from, to] => {
                fs::create_dir_all(at(dir)).unwrap();
                copy(&at(from), &at(to));
            }
            [] | ["#", ..] | ["ENTRYPOINT" | "CMD", ..] => {}
            _ => panic!("a line not known here: {line}"),
        }
    }
    // Debian's small image has no service manager, and the script has to find the host's.
    fs::create_dir_all(at("/usr/bin")).unwrap();
    fs::write(at("/usr/bin/systemctl"), "#!/bin/sh\nexit 127\n").unwrap();
    fs::set_permissions(at("/usr/bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = Command::new("cp")
        .arg("-rT")
        .arg(from)
        .arg(to)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}
