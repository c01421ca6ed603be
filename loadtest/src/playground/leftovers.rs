//! Removes what a playground left that could not clean up after itself (killed with -9, or a machine that went down).
//!
//! In: the directory that holds work directories. Out: processes ended, mounts undone, directories removed.
//! Invariant: only ours. A directory counts when its name has our prefix, root owns it, its owner file names a process
//! that no longer exists (pid *and* start time), and a process is ended only when pid and start time match the pid
//! file, or when it is a container's shim whose command line names the directory's containerd.
//! Not here: the image cache.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{
    mounts,
    process::start_ticks,
    shim::Shim,
    workdir::{self, OWNER_FILE, PIDS_DIR, PREFIX},
};

/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Removes every abandoned work directory in `parent`.
pub fn remove(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && entry
                .metadata()
                .is_ok_and(|m| m.is_dir() && m.uid() == rustix::process::geteuid().as_raw());
        if !ours || !matches!(running(&path.join(OWNER_FILE)), Some(None)) {
            continue;
        }
        eprintln!(
            "headstart-loadtest: removing {}, left by a run that was killed",
            path.display()
        );
        end_recorded(&path.join(PIDS_DIR));
        for root in fs::read_dir(&path).into_iter().flatten().flatten() {
            Shim::end_holder(&root.path());
        }
        end_container_shims(&path);
        if let Err(e) = workdir::remove(&path) {
            eprintln!("headstart-loadtest: left {} behind: {e}", path.display());
        }
    }
}

/// The process of a `pid start-time` file: `None` when the file says nothing, `Some(None)` when that process is gone.
fn running(file: &Path) -> Option<Option<Pid>> {
    let text = fs::read_to_string(file).ok()?;
    let mut fields = text.split_whitespace();
    let pid: u32 = fields.next()?.parse().ok()?;
    let started: u64 = fields.next()?.parse().ok()?;
    if start_ticks(pid) == Some(started) {
        Some(Pid::from_raw(pid as i32))
    } else {
        Some(None)
    }
}

fn end_recorded(pids: &Path) {
    let files = || fs::read_dir(pids).into_iter().flatten().flatten().map(|e| e.path());
    for file in files() {
        if let Some(Some(pid)) = running(&file) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
    let deadline = Instant::now() + KILL_WAIT;
    while files().any(|f| matches!(running(&f), Some(Some(_)))) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the per-container shims that containerd started for a containerd below `work`, with their containers, and removes
/// their sockets, which containerd keeps in one place for the whole machine.
pub fn end_container_shims(work: &Path) {
    let shims = container_shims(work);
    for (pid, _) in &shims {
        let pid = *pid;
        for child in descendants(pid) {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = kill_process(pid, Signal::KILL);
    }
    let deadline = Instant::now() + KILL_WAIT;
    while !container_shims(work).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    for address in shim_addresses(work) {
        let _ = fs::remove_file(address);
    }
    remove_cgroups(&shims.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

/// Removes the control groups of containers that ended by SIGKILL with their shims, so that nobody else did. Removing a
/// group that is in use fails, which makes trying harmless.
fn remove_cgroups(containers: &[String]) {
    let root = PathBuf::from("/sys/fs/cgroup");
    // One hierarchy for each controller (v1), or one for all (v2).
    let hierarchies = fs::read_dir(&root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .chain([root.clone()]);
    for namespace in hierarchies.map(|h| h.join("k8s.io")).filter(|n| n.is_dir()) {
        for id in containers {
            let _ = fs::remove_dir(namespace.join(id));
        }
        let _ = fs::remove_dir(namespace);
    }
}

/// Processes `containerd-shim... -address BELOW-WORK ...`, with their containers' names.
fn container_shims(work: &Path) -> Vec<(Pid, String)> {
    let id_of_ours = |cmdline: &[u8]| -> Option<String> {
        let args: Vec<&OsStr> = cmdline.split(|b| *b == 0).map(OsStr::from_bytes).collect();
        let is_shim = args.first()?.as_bytes().windows(15).any(|w| w == b"containerd-shim");
        let option = |name: &str| args.windows(2).find(|a| a[0] == name).map(|a| a[1]);
        let ours = is_shim && Path::new(option("-address")?).starts_with(work);
        ours.then(|| option("-id").unwrap_or_default().to_string_lossy().into_owned())
    };
    processes()
        .filter_map(|pid| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some((Pid::from_raw(pid)?, id_of_ours(&cmdline)?))
        })
        .collect()
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Children, their children and so on.
fn descendants(of: Pid) -> Vec<Pid> {
    let parent_of = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let parents: Vec<(i32, i32)> = processes().filter_map(|p| Some((p, parent_of(p)?))).collect();
    let mut found = vec![of.as_raw_nonzero().get()];
    let mut i = 0;
    while i < found.len() {
        let of = found[i];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(p, _)| *p));
        i += 1;
    }
    found[1..].iter().filter_map(|p| Pid::from_raw(*p)).collect()
}

/// The `address` files in the bundles of every containerd below `work`: `unix:///run/containerd/s/HASH`. No mount is entered:
/// behind one may be nobody who answers, and then not even a signal ends the wait.
fn shim_addresses(work: &Path) -> Vec<PathBuf> {
    let mounted = mounts::below(work);
    let mut found = Vec::new();
    let mut dirs = vec![(work.to_owned(), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        if mounted.contains(&dir) {
            continue;
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name() == "address" {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let path = PathBuf::from(text.trim().trim_start_matches("unix://"));
                found.extend(Some(path).filter(|p| p.starts_with("/run/containerd/s")));
            } else if depth < 5 && (depth > 0 || entry.file_name().as_bytes().starts_with(b"node")) {
                // node-NAME / state / io.containerd.runtime.v2.task / NAMESPACE / ID / address
                if entry.file_type().is_ok_and(|t| t.is_dir())
                    && entry.file_name() != "rootfs"
                    && entry.file_name() != "root"
                {
                    dirs.push((entry.path(), depth + 1));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;

    #[test]
    fn addresses_of_shims_are_looked_for_in_no_mount() {
        let work = tempfile::tempdir().unwrap();
        let bundles = ["plain", "mounted"].map(|n| work.path().join("node-1/state").join(n));
        for bundle in &bundles {
            fs::create_dir_all(bundle).unwrap();
        }
        mount("none", &bundles[1], c"tmpfs", MountFlags::empty(), Some(c"")).unwrap();
        for bundle in &bundles {
            let name = bundle.file_name().unwrap().to_string_lossy();
            fs::write(bundle.join("address"), format!("unix:///run/containerd/s/{name}\n")).unwrap();
        }
        let found = shim_addresses(work.path());
        unmount(&bundles[1], UnmountFlags::DETACH).unwrap();
        assert_eq!(found, [PathBuf::from("/run/containerd/s/plain")]);
    }
}
