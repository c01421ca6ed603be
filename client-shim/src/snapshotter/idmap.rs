//! User namespaces: whose ids a snapshot's files have, as containerd's labels and mount options say it.
//!
//! In: the labels `containerd.io/snapshot/uidmapping` and `gidmapping`, which clients set for snapshotters with the
//! capability "remap-ids". Out: an [`IdMap`], a user namespace that has it, an idmapped mount. Invariant: a mapping that this
//! node cannot mount is an error with words for people, never a container whose files belong to nobody.
//! Not here: which mounts there are ([`super::idmapped`]); containers without these labels: there containerd copies the
//! image with other owners, on any snapshotter.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::SnapshotError;
use super::record::Labels;

/// containerd's labels (`snapshots.LabelSnapshotUIDMapping` and its sister).
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// Ranges in one label: what the kernel takes in one uid_map (user_namespaces(7)).
const RANGES_MAX: usize = 340;

/// `size` ids, from `container` inside to `host` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    size: u32,
}

/// A mapping of users and one of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl IdMap {
    /// `None`: without a user namespace, or one that containerd takes care of.
    pub fn from_labels(labels: &Labels) -> Result<Option<Self>, SnapshotError> {
        let (uid, gid) = match (labels.get(UID_MAPPING), labels.get(GID_MAPPING)) {
            (None, None) => return Ok(None),
            (Some(uid), Some(gid)) => (uid, gid),
            _ => return Err(SnapshotError::Invalid("one of the labels for ids is missing".into())),
        };
        Ok(Some(Self {
            uids: ranges(uid)?,
            gids: ranges(gid)?,
        }))
    }

    /// As `/proc/<pid>/uid_map` and `gid_map` take them.
    fn maps(&self) -> [String; 2] {
        let text = |ranges: &[Range]| {
            let range = |r: &Range| format!("{} {} {}\n", r.container, r.host, r.size);
            ranges.iter().map(range).collect::<String>()
        };
        [text(&self.uids), text(&self.gids)]
    }

    /// The owner outside of what belongs to `uid` and `gid` inside. An id without a counterpart stays as it is, and is
    /// nobody's inside, as with any idmapped mount.
    pub fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let map = |ranges: &[Range], id: u32| {
            let range = ranges
                .iter()
                .find(|r| (r.container..r.container.saturating_add(r.size)).contains(&id));
            range.and_then(|r| r.host.checked_add(id - r.container)).unwrap_or(id)
        };
        (map(&self.uids, uid), map(&self.gids, gid))
    }
}

fn ranges(label: &str) -> Result<Vec<Range>, SnapshotError> {
    let invalid = || SnapshotError::Invalid(format!("{label:?} is not a mapping of ids"));
    let range = |text: &str| {
        let mut numbers = text.split(':').map(|n| n.parse::<u32>().ok());
        let range = Range {
            container: numbers.next()??,
            host: numbers.next()??,
            size: numbers.next()??,
        };
        (numbers.next().is_none() && range.size > 0).then_some(range)
    };
    let ranges: Option<Vec<Range>> = label.split(',').take(RANGES_MAX + 1).map(range).collect();
    ranges.filter(|r| r.len() <= RANGES_MAX).ok_or_else(invalid)
}

/// Tries whether what is shown at `dir` can be mounted idmapped: tells by doing, on a copy of the mount that nobody sees.
/// Blocks for as long as a process takes to start.
pub fn try_idmapped(dir: &Path) -> io::Result<()> {
    let some = [Range {
        container: 0,
        host: 100_000,
        size: 65_536,
    }];
    let namespace = user_namespace(&IdMap {
        uids: some.into(),
        gids: some.into(),
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let path = CString::new(dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let tree = open_tree(rustix::fs::CWD, &path, flags)?;
    set_idmap(&tree, &namespace)
}

pub(super) fn set_idmap(tree: &OwnedFd, namespace: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain numbers, of which zero is "leave it as it is".
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = namespace.as_raw_fd() as u64;
    // SAFETY: the empty path is a C string, the structure lives through the call and has the size that is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A user namespace with this mapping, which outlives the process it was made with.
pub(super) fn user_namespace(ids: &IdMap) -> io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: like fork; the child, of which nothing but this thread exists, makes system calls only.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: as above. It dies with the thread that made it, should that be killed here.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
    let pid = i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else {
        return Err(io::Error::last_os_error());
    };
    let of = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    let opened = (|| {
        let [uids, gids] = ids.maps();
        std::fs::write(of("uid_map"), uids)?;
        std::fs::write(of("gid_map"), gids)?;
        std::fs::File::open(of("ns/user")).map(OwnedFd::from)
    })();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(uid: &str, gid: &str) -> Labels {
        [(UID_MAPPING, uid), (GID_MAPPING, gid)]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    }

    #[test]
    fn a_mapping_has_options_and_owners() {
        let map = IdMap::from_labels(&labels("0:100000:1000,1000:7:1", "0:200000:65536"))
            .unwrap()
            .unwrap();
        assert_eq!(map.maps(), ["0 100000 1000\n1000 7 1\n", "0 200000 65536\n"]);
        assert_eq!(map.outside(0, 5), (100_000, 200_005));
        assert_eq!(map.outside(1000, 65_536), (7, 65_536), "without a counterpart as it is");
        assert_eq!(IdMap::from_labels(&Labels::new()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let long = vec!["0:1:1"; RANGES_MAX + 1].join(",");
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:1:1",
            "-1:1:1",
            "0:1:1,",
            "0:1:4294967296",
            "0:1:1,rw",
            long.as_str(),
        ] {
            assert!(IdMap::from_labels(&labels(bad, "0:1:1")).is_err(), "{bad:?}");
            assert!(IdMap::from_labels(&labels("0:1:1", bad)).is_err(), "{bad:?}");
        }
        let mut one = labels("0:1:1", "0:1:1");
        one.remove(UID_MAPPING);
        assert!(IdMap::from_labels(&one).is_err());
    }
}
