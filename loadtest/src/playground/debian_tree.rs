//! Debian releases in trees of their own: newer clients than this machine has, and a small node.
//!
//! In: a tree that `scripts/debian-root.sh` makes. Out: commands that run in it.
//! Invariant: every command has its own mount namespace, in which the tree is the root and the work directory has the path
//! it has outside; what is mounted there ends with the last process in it. The tree itself is shared and only read.
//! Not here: making a tree.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{PlaygroundError, Result, command, site::Site, workdir::WorkDir};

/// Makes the tree the root: a real one (`pivot_root`), because mounts of containerd and podman fail in a chroot.
/// Arguments: tree, work directory, program and its arguments. The temporary directories are memory, and private.
const ENTER: &str = r#"
tree=$1 work=$2; shift 2
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"; mount --rbind /sys "$tree/sys"; mount --rbind /dev "$tree/dev"
for dir in run tmp var/tmp root; do mount -t tmpfs tmpfs "$tree/$dir"; done
mkdir -p "$tree$work"; mount --rbind "$work" "$tree$work"
cd "$tree"; mkdir run/host; pivot_root . run/host; umount -l /run/host; cd /
exec "$@"
"#;

/// Which release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// containerd 2.1, podman, skopeo and others.
    Forky,
    /// containerd 1.7.
    Trixie,
    /// A small node, with systemd.
    Bookworm,
}

#[derive(Clone, Debug)]
pub struct DebianTree {
    tree: PathBuf,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Suite::Forky => "forky",
            Suite::Trixie => "trixie",
            Suite::Bookworm => "bookworm",
        }
    }

    /// Without which it would be of no use.
    fn main_program(self) -> &'static str {
        match self {
            Suite::Forky | Suite::Trixie => "usr/bin/containerd",
            Suite::Bookworm => "usr/lib/systemd/systemd",
        }
    }
}

impl DebianTree {
    /// The tree, made now if it is not there. Takes well under a minute then, on a quick network.
    pub async fn open(suite: Suite, site: &Site, work: &WorkDir) -> Result<DebianTree> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/debian-root.sh");
        let mut make = Command::new(script);
        make.arg(suite.name());
        if std::env::var_os("HEADSTART_DEBIAN_ROOTS").is_none()
            && let Some(target) = site.cache_dir.parent()
        {
            make.env("HEADSTART_DEBIAN_ROOTS", target);
        }
        let output = command::run("debian-root", make, work).await?;
        let tree = PathBuf::from(String::from_utf8_lossy(&output).trim());
        if tree.join(suite.main_program()).is_file() {
            Ok(DebianTree { tree })
        } else {
            Err(PlaygroundError::unexpected(
                format!("find {} in Debian's tree", suite.main_program()),
                tree.display(),
            ))
        }
    }

    /// Where it is. It is shared: whoever wants to change something lays a directory of his own over it.
    pub fn path(&self) -> &Path {
        &self.tree
    }

    /// `program` in the tree, with nothing of our environment.
    pub fn command(&self, work: &WorkDir, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        // Slave: what a snapshotter mounts later in a shared directory below the work directory shows here too.
        command.args(["--mount", "--propagation", "slave", "--", "sh", "-ec", ENTER, "sh"]);
        command.arg(&self.tree).arg(work.path());
        command.arg(program);
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("TMPDIR", "/tmp");
        command
    }

    /// `None` when this release does not have it.
    pub fn find(&self, tool: &str) -> Option<PathBuf> {
        let inside = Path::new("/usr/bin").join(tool);
        self.tree.join("usr/bin").join(tool).is_file().then_some(inside)
    }

    /// What was asked of it and what came: `NAME VERSION` or `NAME missing`, a line each.
    pub fn packages(&self) -> String {
        std::fs::read_to_string(self.tree.join("headstart-packages")).unwrap_or_default()
    }
}
