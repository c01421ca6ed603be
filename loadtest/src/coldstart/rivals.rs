//! Other lazy snapshotters: what each needs to be measured, and which of it is not here.
//!
//! In: the ways that were asked for, a tree of Debian's next release with their packages. Out: the reason why one cannot be
//! measured.
//! Invariant: a rival that was asked for is named in the report; it is never left out in silence.
//! Not here: running them. None is run yet: their ways keep a place in reports, in tables and on the page.

use std::path::PathBuf;

use super::way::Way;

/// Names the tree; without it nothing of the rivals is looked for.
pub const TREE_VARIABLE: &str = "HEADSTART_PEERS_TREE";

/// Programs beside containerd, ctr and runc.
fn needs(way: Way) -> &'static [&'static str] {
    match way {
        Way::Stargz => &["ctr-remote", "containerd-stargz-grpc"],
        Way::Soci => &["soci", "soci-snapshotter-grpc"],
        Way::Nydus => &["ctr-remote", "containerd-nydus-grpc", "nydusd", "nydus-image"],
        _ => &[],
    }
}

/// Of `ways`, the rivals that cannot be measured, and why.
pub fn absent(ways: &[Way]) -> Vec<(Way, String)> {
    let tree = std::env::var_os(TREE_VARIABLE).map(PathBuf::from);
    let rivals = ways.iter().filter(|w| Way::RIVALS.contains(w));
    rivals.map(|way| (*way, why_not(*way, tree.as_deref()))).collect()
}

fn why_not(way: Way, tree: Option<&std::path::Path>) -> String {
    let Some(tree) = tree else {
        return format!("{TREE_VARIABLE} names no tree with its programs");
    };
    let is_there = |program: &&&str| {
        ["usr/bin", "usr/sbin", "usr/local/bin"]
            .iter()
            .any(|dir| tree.join(dir).join(program).is_file())
    };
    let missing: Vec<&str> = needs(way).iter().filter(|p| !is_there(p)).copied().collect();
    match missing.len() {
        0 => format!(
            "its programs are in {}, but starting them is not built in",
            tree.display()
        ),
        _ => format!("{} not in {}", missing.join(", "), tree.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_of_the_rivals_that_were_asked_for() {
        let tree = tempfile::tempdir().unwrap();
        let bin = tree.path().join("usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("ctr-remote"), "").unwrap();
        assert_eq!(
            why_not(Way::Stargz, Some(tree.path())),
            format!("containerd-stargz-grpc not in {}", tree.path().display())
        );
        std::fs::write(bin.join("containerd-stargz-grpc"), "").unwrap();
        assert!(why_not(Way::Stargz, Some(tree.path())).contains("not built in"));
        assert!(why_not(Way::Soci, None).contains(TREE_VARIABLE));
        assert_eq!(absent(&[Way::Local, Way::Nydus]).len(), 1);
    }
}
