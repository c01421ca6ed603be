//! The ways to start an image that are compared.
//!
//! In: a name. Out: a way and its title. Invariant: names are stable, they are in JSON and on command lines; the order here
//! is the order of measuring, because later ways use what earlier ones left (a warm proxy, an unpacked image).
//! Not here: doing it ([`super::rounds`], [`super::rivals`]).

use std::str::FromStr;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// overlayfs, from the upstream.
    Upstream,
    /// overlayfs, through a proxy that has nothing.
    MirrorCold,
    /// overlayfs, through a proxy that has everything.
    MirrorWarm,
    /// overlayfs, the image unpacked on the node already, page cache warm: the goal.
    Local,
    /// The same, page cache dropped.
    LocalCold,
    /// Lazy, a proxy that has converted the image and has seen no start of it.
    LazyFirst,
    /// Lazy, after another node started it.
    LazySecond,
    /// Lazy, through a proxy that has nothing.
    LazyCold,
    /// eStargz, optimised, from a registry as near as the proxy.
    Stargz,
    /// SOCI, the same.
    Soci,
    /// RAFS v6, the same.
    Nydus,
}

impl Way {
    pub const ALL: [Way; 11] = [
        Way::Upstream,
        Way::MirrorCold,
        Way::MirrorWarm,
        Way::Local,
        Way::LocalCold,
        Way::LazyFirst,
        Way::LazySecond,
        Way::LazyCold,
        Way::Stargz,
        Way::Soci,
        Way::Nydus,
    ];
    pub const RIVALS: [Way; 3] = [Way::Stargz, Way::Soci, Way::Nydus];

    pub fn name(self) -> &'static str {
        match self {
            Way::Upstream => "upstream",
            Way::MirrorCold => "mirror-cold",
            Way::MirrorWarm => "mirror-warm",
            Way::Local => "local",
            Way::LocalCold => "local-cold",
            Way::LazyFirst => "lazy-first",
            Way::LazySecond => "lazy-second",
            Way::LazyCold => "lazy-cold",
            Way::Stargz => "stargz",
            Way::Soci => "soci",
            Way::Nydus => "nydus",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Way::Upstream => "ordinary pull, upstream",
            Way::MirrorCold => "ordinary pull, cold proxy",
            Way::MirrorWarm => "ordinary pull, warm proxy",
            Way::Local => "unpacked on the node",
            Way::LocalCold => "unpacked on the node, cold page cache",
            Way::LazyFirst => "lazy, warm proxy, first node",
            Way::LazySecond => "lazy, warm proxy, second node",
            Way::LazyCold => "lazy, cold proxy",
            Way::Stargz => "stargz, optimised eStargz",
            Way::Soci => "SOCI",
            Way::Nydus => "Nydus",
        }
    }

    pub fn is_lazy(self) -> bool {
        matches!(self, Way::LazyFirst | Way::LazySecond | Way::LazyCold)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Way::ALL.into_iter().find(|w| w.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Way::ALL.iter().map(|w| w.name()).collect();
            format!("{text} is none of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_on_command_lines_and_in_json() {
        for way in Way::ALL {
            assert_eq!(way.name().parse(), Ok(way));
            assert_eq!(serde_json::to_string(&way).unwrap(), format!("\"{}\"", way.name()));
        }
        assert!("lazy".parse::<Way>().is_err());
    }
}
