//! A real systemd, first process of namespaces of its own, that runs the shim by the unit we ship.
//!
//! In: a directory that it shares with us, so that what is mounted there is seen on both sides; the shim's arguments.
//! Out: what `systemctl` does and says. Invariant: it knows no units but ours, and nothing of it is left when the value is
//! dropped. Not here: what is done with it (`service.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::node::LONG;

const UNIT: &str = "headstart-shim.service";
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/systemd/headstart-shim.service");
/// As the unit has it, but soon.
const WATCHDOG_SECS: u32 = 2;

/// Runs in the new namespaces. Every mount but the shared one is made private before anything is changed; others may come and
/// go meanwhile, with somebody else's.
const BEGIN: &str = r#"
set -e
shared=$1
others() { awk -v ours="$shared" '/ shared:/ && $5 != ours { print $5 }' /proc/self/mountinfo; }
for _ in {1..100}; do
    others=$(others)
    [ -n "$others" ] || break
    while read -r at; do mount --make-private "$(printf %b "$at")" 2>/dev/null || true; done <<<"$others"
done
[ -z "$(others)" ]
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
for at in /run /var/lib; do mount -t tmpfs none "$at"; done
exec env -i PATH="$PATH" container=other SYSTEMD_UNIT_PATH="$shared/units" \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
"#;

pub struct Systemd {
    /// unshare(1): whoever kills it kills all.
    process: Child,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Systemd {
    /// `dir`: to be shared.
    pub fn start(dir: &Path, shim: &str, config: &Path) -> Self {
        let dir = dir.canonicalize().unwrap();
        let units = dir.join("units");
        let overrides = units.join(format!("{UNIT}.d"));
        fs::create_dir_all(&overrides).unwrap();
        // What every unit depends on unless it says otherwise.
        for name in ["basic.target", "sysinit.target", "shutdown.target"] {
            fs::write(units.join(name), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        fs::copy(SHIPPED, units.join(UNIT)).unwrap();
        let ours = format!(
            "[Service]\nExecStart=\nExecStart={shim} --config {}\nStandardError=append:{}/log\nWatchdogSec={WATCHDOG_SECS}\n",
            config.display(),
            dir.display()
        );
        fs::write(overrides.join("ours.conf"), ours).unwrap();
        mount_bind(&dir, &dir).unwrap();
        mount_change(&dir, MountPropagationFlags::SHARED).unwrap();
        // A namespace's root is the group it was made in.
        let cgroup = cgroups().join(format!("headstart-{}", dir.file_name().unwrap().display()));
        fs::create_dir(&cgroup).unwrap();
        let process = Command::new("sh")
            .args(["-c", "echo 0 >\"$0/cgroup.procs\"; exec unshare \"$@\""])
            .arg(&cgroup)
            .args(["--pid", "--fork", "--kill-child", "--mount", "--propagation=unchanged"])
            .args([
                "--mount-proc",
                "--uts",
                "--ipc",
                "--cgroup",
                "bash",
                "-c",
                BEGIN,
                "begin",
            ])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("systemd.log")).unwrap())
            .stderr(fs::File::create(dir.join("systemd.errors")).unwrap())
            .spawn()
            .unwrap();
        let mut systemd = Self { process, dir, cgroup };
        let until = Instant::now() + LONG;
        while systemd.ctl(&["is-active", "basic.target"]).is_err() {
            let ended = systemd.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "systemd does not run: {ended:?}, {}",
                systemd.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        systemd
    }

    /// `systemctl <arguments> headstart-shim.service`
    pub fn unit(&self, arguments: &[&str]) -> String {
        self.ctl(&[arguments, &[UNIT]].concat())
            .unwrap_or_else(|e| panic!("systemctl {arguments:?}: {e}; {}", self.log()))
    }

    pub fn property(&self, name: &str) -> String {
        self.unit(&["show", "--value", "-p", name])
    }

    /// Whether its store outlives a stop.
    pub fn keeps_while_stopped(&self) -> bool {
        let text = self.ctl(&["--version"]).unwrap();
        let version = text.split_whitespace().nth(1).unwrap();
        version.parse::<u32>().unwrap() >= 254
    }

    fn ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let first = first_child(self.process.id()).ok_or("no first process")?;
        let output = Command::new("nsenter")
            .args(["-t", &first.to_string(), "--mount", "--pid", "systemctl"])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        format!("{}{}", read("systemd.log"), read("systemd.errors"))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The group is empty when the last of them is gone.
        let until = Instant::now() + LONG;
        while remove_groups(&self.cgroup).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = unmount(&self.dir, UnmountFlags::DETACH);
    }
}

/// Version 2, wherever this machine has it.
pub fn cgroups() -> PathBuf {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.find(|fields| fields[2] == "cgroup2");
    PathBuf::from(found.expect("cgroup2 is mounted nowhere")[1])
}

pub fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// The number of unshare's child, as we see it.
pub fn first_child(parent: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}
