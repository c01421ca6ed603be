//! Other lazy snapshotters as nodes have them, to be measured like ours.
//!
//! In: the programs that `scripts/bench-peers.sh` made, and a registry's storage with images in their forms. Out: nodes that use
//! one of them, and what an image is called there; or the reason why one cannot be measured.
//! Invariant: their registry is as near to the node as a proxy of ours; a daemon starts on empty state, as its makers ship it.
//! Not here: making the forms (the script, and [`crate::bench::node`] for its images, but not Nydus').

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use serde::Deserialize;

use crate::{
    playground::{
        PlaygroundError, Result, command,
        lab::{self, ImageFacts},
        node::{Node, Rival},
        process::{Process, without_proxies},
        registry::Registry,
        site::Site,
        workdir::WorkDir,
    },
    relay::{LinkShape, Relay, Wire},
};

mod nydus;

/// Names the directory that `scripts/bench-peers.sh` made.
const DIR_VARIABLE: &str = "HEADSTART_BENCH_PEERS";

/// Whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Stargz,
    Soci,
    Nydus,
}

impl Kind {
    /// Whose forms of any image [`crate::bench::node`] makes: those that can be asked for by name.
    pub const OF_ANY_IMAGE: [Kind; 2] = [Kind::Stargz, Kind::Soci];

    /// What containerd calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Stargz => "stargz",
            Kind::Soci => "soci",
            Kind::Nydus => "nydus",
        }
    }

    /// Of an image in its form: SOCI's index is beside the image as it is.
    pub fn tag(self) -> &'static str {
        match self {
            Kind::Stargz => "esgz",
            Kind::Soci => "v1",
            Kind::Nydus => "nydus",
        }
    }

    /// Programs beside containerd, ctr and runc; the daemon first.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Kind::Stargz => &["stargz-daemon"],
            Kind::Soci => &["soci-snapshotter-grpc", "soci"],
            Kind::Nydus => &["containerd-nydus-grpc", nydus::DAEMON],
        }
    }

    /// Why it cannot be run with what is in `dir`.
    pub fn why_not(self, dir: &Path) -> Option<String> {
        if !dir.join("tree").is_dir() {
            return Some(format!("make {} with ./scripts/bench-peers.sh first", dir.display()));
        }
        let is_there = |name: &&&str| program(dir, name).is_file();
        let missing: Vec<&str> = self.needs().iter().filter(|p| !is_there(p)).copied().collect();
        if !missing.is_empty() {
            return Some(format!("{} not in {}", missing.join(", "), dir.join("tree").display()));
        }
        match self {
            Kind::Stargz | Kind::Nydus => None,
            Kind::Soci => own_name(dir).err(),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Kind::OF_ANY_IMAGE.into_iter().find(|k| k.name() == text);
        found.ok_or_else(|| format!("{text} is none of {}", Kind::OF_ANY_IMAGE.map(Kind::name).join(", ")))
    }
}

/// Whether a daemon fetches what nobody has asked for, as they all do by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    On,
    Off,
}

/// Where `scripts/bench-peers.sh` has put everything, or would.
pub fn directory(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = given.or_else(|| std::env::var_os(DIR_VARIABLE).map(PathBuf::from)) {
        return Ok(dir);
    }
    Ok(Site::of_this_executable()?.cache_dir.with_file_name("bench-peers"))
}

/// A program of forky's; they run on this machine as they are.
pub fn program(dir: &Path, name: &str) -> PathBuf {
    dir.join("tree/usr/bin").join(name)
}

/// This machine's name, if it leads to the relays and there is a certificate for it.
fn own_name(dir: &Path) -> std::result::Result<String, String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().to_owned();
    let leads_here = |addresses: std::vec::IntoIter<std::net::SocketAddr>| {
        let mut addresses = addresses;
        addresses.any(|a| a.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST))
    };
    if name.is_empty() || !(name.as_str(), 0).to_socket_addrs().is_ok_and(leads_here) {
        return Err(format!(
            "{name} is not 127.0.0.1 in /etc/hosts, and SOCI needs a name for TLS"
        ));
    }
    match certificate(dir, &name).is_file() {
        true => Ok(name),
        false => Err(format!("{} is not there", certificate(dir, &name).display())),
    }
}

fn certificate(dir: &Path, name: &str) -> PathBuf {
    dir.join("tls").join(format!("{name}.pem"))
}

/// What they run on.
#[derive(Debug)]
pub struct Rivals {
    dir: PathBuf,
    /// Of all forms, by plain HTTP; for counting and warming too.
    plain: Registry,
    plain_link: Relay,
    /// Debian's SOCI asks for its index by TLS.
    tls: Registry,
    tls_link: Relay,
    /// A name of this machine that is not "localhost", to which SOCI would not speak TLS.
    name: String,
}

impl Rivals {
    /// `dir`: what `scripts/bench-peers.sh` made. `storage`: of a registry with the forms.
    pub async fn start(work: &WorkDir, link: LinkShape, dir: &Path, storage: &Path) -> Result<Rivals> {
        let found = |path: &Path| {
            let failed = PlaygroundError::io(format!("find {}", path.display()));
            path.canonicalize().map_err(failed)
        };
        let (dir, storage) = (found(dir)?, found(storage)?);
        let name = own_name(&dir).unwrap_or_default();
        let plain = Registry::start(work, "peers", &storage, true).await?;
        let (pem, key) = (certificate(&dir, &name), dir.join("tls").join(format!("{name}.key")));
        let with = (!name.is_empty()).then_some((pem.as_path(), key.as_path()));
        let tls = Registry::start_with(work, "peers-tls", &storage, true, with).await?;
        let wire = Wire::new(link);
        let relay = |to: &Registry| Relay::on(&wire, to.address).map_err(PlaygroundError::io("start a relay"));
        let (plain_link, tls_link) = (relay(&plain)?, relay(&tls)?);
        Ok(Rivals {
            dir,
            plain,
            plain_link,
            tls,
            tls_link,
            name,
        })
    }

    /// Where the blobs are, and what the node asks through.
    pub fn source(&self, kind: Kind) -> (&Registry, &Relay) {
        match kind {
            Kind::Soci => (&self.tls, &self.tls_link),
            Kind::Stargz | Kind::Nydus => (&self.plain, &self.plain_link),
        }
    }

    /// An image in the rival's form.
    pub async fn facts(&self, kind: Kind, repository: &str) -> Result<ImageFacts> {
        let host = match kind {
            Kind::Soci => self.name.as_str(),
            Kind::Stargz | Kind::Nydus => "127.0.0.1",
        };
        let mut facts = lab::image_facts(&self.plain, repository, kind.tag()).await?;
        facts.registry = format!("{host}:{}", self.source(kind).1.address().port());
        Ok(facts)
    }

    /// A node on empty state.
    pub async fn node(&self, work: &WorkDir, kind: Kind, name: &str, background: Background) -> Result<Node> {
        let root = work.dir(format!("{name}-rival"))?;
        // Short: the names of sockets are.
        let socket = work.path().join(format!("{name}-r.sock"));
        let mut command = Command::new(program(&self.dir, kind.needs().first().copied().unwrap_or_default()));
        let is_off = background == Background::Off;
        let mut runs_anew = Vec::new();
        match kind {
            Kind::Soci => {
                let config = if is_off {
                    "[background_fetch]\ndisable = true\n"
                } else {
                    ""
                };
                let config = work.write(format!("{name}-rival.toml"), config)?;
                command.arg("--root").arg(&root).arg("--address").arg(&socket);
                command.arg("--config").arg(config);
                command.env("SSL_CERT_FILE", certificate(&self.dir, &self.name));
            }
            Kind::Stargz => {
                let config = serde_json::json!({
                    "NoPrometheus": true,
                    "Direct": true,
                    "NoBackgroundFetch": is_off,
                });
                let config = work.write(format!("{name}-rival.json"), &config.to_string())?;
                command.arg(&root).arg(&socket).arg(config);
            }
            Kind::Nydus => {
                let daemon = program(&self.dir, nydus::DAEMON);
                let config = nydus::write(work, name, (&root, &socket), &daemon, background)?;
                command.arg("--config").arg(config);
                runs_anew = vec![daemon, PathBuf::from("/bin/sh")];
            }
        }
        without_proxies(&mut command);
        let launch = command::again(&command);
        let daemon = Process::spawn(&format!("{name}-rival"), command, work, false)?;
        // CRI does not tell it how long layers are, and without that it tries for many seconds.
        let puller = (kind == Kind::Soci).then(|| {
            let certificate = certificate(&self.dir, &self.name);
            (program(&self.dir, "soci"), certificate)
        });
        runs_anew.extend(puller.iter().map(|(program, _)| program.clone()));
        let rival = Rival {
            name: kind.name(),
            launch,
            daemon,
            root,
            socket,
            puller,
            runs_anew,
        };
        Node::start_rival(work, name, rival, &self.hosts_toml(kind)).await
    }

    /// Where containerd finds the registry.
    fn hosts_toml(&self, kind: Kind) -> String {
        let ca = certificate(&self.dir, &self.name).to_string_lossy().into_owned();
        let (url, more) = match kind {
            Kind::Soci => {
                let url = format!("https://127.0.0.1:{}", self.tls_link.address().port());
                (url, format!("  ca = {}\n", toml::Value::from(ca)))
            }
            Kind::Stargz | Kind::Nydus => (self.plain_link.url(), String::new()),
        };
        format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{more}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let why = |kind: Kind| kind.why_not(dir.path()).unwrap_or_default();
        assert!(why(Kind::Stargz).contains("bench-peers.sh"));
        let bin = dir.path().join("tree/usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        assert!(why(Kind::Stargz).contains("stargz-daemon not in"));
        std::fs::write(bin.join("stargz-daemon"), "").unwrap();
        assert_eq!(why(Kind::Stargz), "");
        assert!(why(Kind::Soci).contains("soci-snapshotter-grpc, soci not in"));
        std::fs::write(bin.join("containerd-nydus-grpc"), "").unwrap();
        assert!(why(Kind::Nydus).contains("nydusd not in"), "the crate did not compile");
        std::fs::write(bin.join("nydusd"), "").unwrap();
        assert_eq!(why(Kind::Nydus), "");
    }

    #[test]
    fn names_are_the_same_on_command_lines_and_in_files() {
        for kind in Kind::OF_ANY_IMAGE {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(
                serde_json::from_str::<Kind>(&format!("{:?}", kind.name())).unwrap(),
                kind
            );
        }
        assert!("nydus".parse::<Kind>().is_err(), "nobody here converts images for it");
    }
}
