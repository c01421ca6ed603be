//! The ways of others.
//!
//! In: the ways that were asked for, and what `scripts/bench-peers.sh` made: programs, and the list's images in their forms.
//! Out: what is measured of it, and what cannot be, with the reason.
//! Invariant: a rival that was asked for is named in the report; it is never left out in silence.
//! Not here: running one ([`crate::rivals`]).

use std::path::Path;

use super::way::Way;
use crate::{
    playground::{Result, lab::Lab, measure::Subject},
    rivals::{Kind, Rivals},
};

/// Below the directory: a registry's storage.
const STORAGE: &str = "registry";

/// `None`: no other lazy snapshotter's.
pub fn kind(way: Way) -> Option<Kind> {
    match way {
        Way::Stargz => Some(Kind::Stargz),
        Way::Soci => Some(Kind::Soci),
        Way::Nydus => Some(Kind::Nydus),
        _ => None,
    }
}

/// Of `ways`, the rivals that cannot be measured, and why.
pub fn absent(ways: &[Way], dir: &Path) -> Vec<(Way, String)> {
    let rivals = ways.iter().filter(|w| Way::RIVALS.contains(w));
    rivals.filter_map(|way| Some((*way, why_not(*way, dir)?))).collect()
}

/// All of them, of a comparison of an image that there are no forms of.
pub fn left_out() -> Vec<(Way, String)> {
    let why = "it needs this image in a form of its own; README.md says how images are compared with it";
    Way::RIVALS.map(|way| (way, why.to_owned())).into()
}

fn why_not(way: Way, dir: &Path) -> Option<String> {
    let kind = kind(way)?;
    if !dir.join(STORAGE).is_dir() {
        return Some(format!("make {} with ./scripts/bench-peers.sh first", dir.display()));
    }
    kind.why_not(dir)
}

/// `None`: none of `ways` is one of them that can be measured.
pub async fn start(lab: &Lab, ways: &[Way], dir: &Path) -> Result<Option<Rivals>> {
    let is_possible = |way: &Way| Way::RIVALS.contains(way) && why_not(*way, dir).is_none();
    if !ways.iter().any(is_possible) {
        return Ok(None);
    }
    let storage = dir.join(STORAGE);
    Rivals::start(&lab.work, lab.links.node, dir, &storage).await.map(Some)
}

/// One of the list's images in the rival's form.
pub async fn subject(rivals: &Rivals, kind: Kind, image: &str, like: &Subject) -> Result<Subject> {
    Ok(Subject {
        image: rivals.facts(kind, &format!("bench/{image}")).await?,
        ..like.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rivals_that_were_asked_for_are_absent() {
        let dir = tempfile::tempdir().unwrap();
        let absent = |ways: &[Way]| absent(ways, dir.path());
        assert_eq!(absent(&[Way::Local, Way::Nydus, Way::Stargz]).len(), 2);
        let bin = dir.path().join("tree/usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        let make = |program: &str| std::fs::write(bin.join(program), "").unwrap();
        make("stargz-daemon");
        assert!(absent(&[Way::Stargz])[0].1.contains("bench-peers.sh"), "no images");
        std::fs::create_dir(dir.path().join(STORAGE)).unwrap();
        let left = absent(&[Way::Local, Way::Nydus, Way::Stargz]);
        assert_eq!(left.iter().map(|(way, _)| *way).collect::<Vec<_>>(), [Way::Nydus]);
        assert!(left[0].1.contains("containerd-nydus-grpc, nydusd"), "{left:?}");
        for program in ["containerd-nydus-grpc", "nydusd"] {
            make(program);
        }
        assert_eq!(absent(&[Way::Local, Way::Nydus, Way::Stargz]), []);
    }
}
