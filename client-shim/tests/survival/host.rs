//! A node of its own: a small Debian with systemd as its first process, in namespaces, and nothing but loopback for a network.
//!
//! In: Debian's tree, a network, a directory. Out: its root as seen from here, what `systemctl` says there, and whatever is run
//! there. Invariant: it changes nothing outside its directory, no setting of the kernel among it, and nothing of it is left
//! when the value is dropped. Not here: what is installed on it (`daemonset.rs`); units of ours under a bare systemd (`systemd.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use crate::network::Network;
use crate::node::LONG;
use crate::systemd::{cgroups, first_child, remove_groups};

/// Runs in the new namespaces. State and images of containers lie on a plain filesystem, as on a node; devices are a few.
const BEGIN: &str = r#"
tree=$1 work=$2
root=$work/root
cd "$work"
mkdir -p root upper/etc overlay kubelet state
echo 5f4dcc3b5aa765d61d8327deb882cf99 >upper/etc/machine-id
mount -t overlay none -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/overlay" "$root"
mkdir -p "$root/var/lib/kubelet/base" "$root/var/lib/headstart-shim" "$root/mnt" "$root/etc/systemd/system"
# Without a bus and a console they would only fail.
for unit in systemd-logind.service getty.target; do ln -s /dev/null "$root/etc/systemd/system/$unit"; done
mount --bind kubelet "$root/var/lib/kubelet"
mkdir -p kubelet/base
mount --bind "$tree" "$root/var/lib/kubelet/base"
mount --bind state "$root/var/lib/headstart-shim"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in null zero full random urandom tty fuse; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
for at in run tmp; do mount -t tmpfs none "$root/$at"; done
cd "$root"
mkdir run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=other \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
"#;

pub struct Host {
    /// unshare(1): whoever kills it kills all.
    process: Child,
    first: u32,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Host {
    pub fn boot(dir: &Path, tree: &Path, network: &Network) -> Self {
        let dir = dir.canonicalize().unwrap();
        // A namespace's root is the group it was made in.
        let cgroup = tempfile::Builder::new().prefix("headstart-host.").tempdir_in(cgroups());
        let cgroup = cgroup.unwrap().keep();
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\"; exec unshare \"$@\""])
            .arg(&cgroup)
            .args(["--pid", "--fork", "--kill-child", "--mount", "--propagation=private"])
            .args(["--uts", "--ipc", "--cgroup", "sh", "-ec", BEGIN, "begin"])
            .arg(tree)
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("systemd.log")).unwrap())
            .stderr(fs::File::create(dir.join("systemd.errors")).unwrap());
        let process = network.inside(|| command.spawn()).unwrap();
        let mut host = Self {
            process,
            first: 0,
            dir,
            cgroup,
        };
        let until = Instant::now() + LONG;
        loop {
            let ended = host.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "systemd does not run: {ended:?}, {}",
                host.log()
            );
            host.first = first_child(host.process.id()).unwrap_or(0);
            if host.first != 0 && host.systemctl(&["is-active", "multi-user.target"]).is_ok() {
                return host;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A path of its own, as it is seen from here.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.first))
    }

    pub fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_else(|e| panic!("{inside}: {e}"))
    }

    /// Its directory for images and volumes of containers, as it is seen from here: also while nothing of it runs.
    pub fn kubelet(&self) -> PathBuf {
        self.dir.join("kubelet")
    }

    /// To be run on it.
    pub fn command(&self, program: &str) -> Command {
        enter(self.first, program)
    }

    pub fn systemctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command("systemctl").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stdout) + &text(&output.stderr)),
        }
    }

    /// Of the shim's service.
    pub fn property(&self, name: &str) -> String {
        let shown = self.systemctl(&["show", "--value", "-p", name, "headstart-shim.service"]);
        shown.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let journal = self
            .command("journalctl")
            .args(["--no-pager", "-u", "headstart-shim"])
            .output();
        let journal = journal.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        format!(
            "{}{}{}",
            read("systemd.log"),
            read("systemd.errors"),
            journal.unwrap_or_default()
        )
    }
}

/// `program` where another process is: its files, its processes, its network.
pub fn enter(process: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args([
            "--target",
            &process.to_string(),
            "--mount",
            "--pid",
            "--net",
            "--",
            program,
        ])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the host says:\n{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The group is empty when the last of them is gone.
        let until = Instant::now() + LONG;
        while remove_groups(&self.cgroup).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Its mounts went with its namespace.
        let _ = unmount(self.dir.join("root"), UnmountFlags::DETACH);
    }
}
