//! The mounts that containerd performs for a snapshot.
//!
//! In: a record, its own directories, the directories below it. Out: [`Mount`]s as containerd's overlay snapshotter
//! would give them: bind for a single directory, overlay for more. Invariant: pure; the order is top first.
//! Not here: where lower directories come from ([`super::service`]); long option strings, which containerd itself
//! shortens by changing to the common directory before it mounts.

use std::path::{Path, PathBuf};

use super::overlay::OverlayOptions;
use super::record::Kind;
use crate::proto::Mount;

/// A snapshot's own directories.
#[derive(Clone, Debug)]
pub struct OwnDirs {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// The mounts of an active snapshot or a view. `lower`: committed snapshots' directories, top first.
pub fn mounts(kind: Kind, own: &OwnDirs, lower: &[PathBuf], overlay: &OverlayOptions) -> Vec<Mount> {
    match (kind, lower) {
        (Kind::Active, []) => vec![bind(&own.upper, "rw")],
        (_, []) => vec![bind(&own.upper, "ro")],
        (Kind::Active, _) => {
            let mut options = overlay.as_slice().to_vec();
            options.push(format!("workdir={}", own.work.display()));
            options.push(format!("upperdir={}", own.upper.display()));
            vec![over(lower, options)]
        }
        (_, [only]) => vec![bind(only, "ro")],
        (_, _) => vec![over(lower, overlay.as_slice().to_vec())],
    }
}

fn bind(source: &Path, mode: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![mode.into(), "rbind".into()],
    }
}

fn over(lower: &[PathBuf], mut options: Vec<String>) -> Mount {
    let lower: Vec<String> = lower.iter().map(|dir| dir.display().to_string()).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, lower: &[&str]) -> (String, String, String) {
        let own = OwnDirs {
            upper: "/s/9/fs".into(),
            work: "/s/9/work".into(),
        };
        let lower: Vec<PathBuf> = lower.iter().map(PathBuf::from).collect();
        let mut all = mounts(kind, &own, &lower, &OverlayOptions::default());
        assert_eq!(all.len(), 1);
        let mount = all.remove(0);
        (mount.r#type, mount.source, mount.options.join(","))
    }

    fn triple(kind: &str, source: &str, options: &str) -> (String, String, String) {
        (kind.into(), source.into(), options.into())
    }

    #[test]
    fn each_shape_is_containerds() {
        assert_eq!(of(Kind::Active, &[]), triple("bind", "/s/9/fs", "rw,rbind"));
        assert_eq!(of(Kind::View, &[]), triple("bind", "/s/9/fs", "ro,rbind"));
        assert_eq!(of(Kind::View, &["/l/1"]), triple("bind", "/l/1", "ro,rbind"));
        assert_eq!(
            of(Kind::View, &["/l/2", "/l/1"]),
            triple("overlay", "overlay", "lowerdir=/l/2:/l/1")
        );
        assert_eq!(
            of(Kind::Active, &["/l/1"]),
            triple("overlay", "overlay", "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/l/1")
        );
    }
}
