//! Other lazy snapshotters, measured like ours.
//!
//! In: what `scripts/bench-peers.sh` made: programs, and images in their forms. Out: nodes that use one of them, and what
//! they start; or the reason why one cannot be measured.
//! Invariant: a rival that was asked for is named in the report; it is never left out in silence. Its registry is as near
//! to the node as our proxy, with its blobs in the page cache; its daemon starts on empty state.
//! Not here: making the forms; Nydus, whose daemon is not in Debian.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::{rig::TAG, way::Way};
use crate::{
    playground::{
        PlaygroundError, Result,
        lab::{self, Lab},
        measure::Subject,
        node::{Node, Rival},
        process::{Process, without_proxies},
        registry::Registry,
    },
    relay::{Relay, Wire},
};

/// Names the directory that `scripts/bench-peers.sh` made.
pub const DIR_VARIABLE: &str = "HEADSTART_BENCH_PEERS";

/// The tag of images in eStargz form.
const STARGZ_TAG: &str = "esgz";

/// What the rivals run on.
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

/// Of `ways`, the rivals that cannot be measured, and why.
pub fn absent(ways: &[Way], dir: &Path) -> Vec<(Way, String)> {
    let rivals = ways.iter().filter(|w| Way::RIVALS.contains(w));
    rivals.filter_map(|way| Some((*way, why_not(*way, dir)?))).collect()
}

/// Programs beside containerd, ctr and runc.
fn needs(way: Way) -> &'static [&'static str] {
    match way {
        Way::Stargz => &["stargz-daemon"],
        Way::Soci => &["soci-snapshotter-grpc", "soci"],
        _ => &[],
    }
}

fn why_not(way: Way, dir: &Path) -> Option<String> {
    if way == Way::Nydus {
        return Some("Debian has no nydusd".to_owned());
    }
    if !dir.join("registry").is_dir() {
        return Some(format!("make {} with ./scripts/bench-peers.sh first", dir.display()));
    }
    let is_there = |program: &&&str| dir.join("tree/usr/bin").join(program).is_file();
    let missing: Vec<&str> = needs(way).iter().filter(|p| !is_there(p)).copied().collect();
    if !missing.is_empty() {
        return Some(format!("{} not in {}", missing.join(", "), dir.join("tree").display()));
    }
    if way == Way::Soci {
        return own_name(dir).err();
    }
    None
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

impl Rivals {
    /// `None`: none of `ways` is one of them that can be measured.
    pub async fn start(lab: &Lab, ways: &[Way], dir: &Path) -> Result<Option<Rivals>> {
        let is_possible = |way: &&Way| Way::RIVALS.contains(way) && why_not(**way, dir).is_none();
        if !ways.iter().any(|way| is_possible(&way)) {
            return Ok(None);
        }
        let dir = dir
            .canonicalize()
            .map_err(PlaygroundError::io(format!("find {}", dir.display())))?;
        let storage = dir.join("registry");
        let name = own_name(&dir).unwrap_or_default();
        let plain = Registry::start(&lab.work, "peers", &storage, true).await?;
        let (pem, key) = (certificate(&dir, &name), dir.join("tls").join(format!("{name}.key")));
        let tls = match name.is_empty() {
            true => Registry::start(&lab.work, "peers-tls", &storage, true).await?,
            false => {
                Registry::start_with(
                    &lab.work,
                    "peers-tls",
                    &storage,
                    true,
                    Some((pem.as_path(), key.as_path())),
                )
                .await?
            }
        };
        let wire = Wire::new(lab.links.node);
        let relay = |to: &Registry| Relay::on(&wire, to.address).map_err(PlaygroundError::io("start a relay"));
        let (plain_link, tls_link) = (relay(&plain)?, relay(&tls)?);
        Ok(Some(Rivals {
            dir,
            plain,
            plain_link,
            tls,
            tls_link,
            name,
        }))
    }

    /// Where the blobs are, and what the node asks through.
    pub fn source(&self, way: Way) -> (&Registry, &Relay) {
        match way {
            Way::Soci => (&self.tls, &self.tls_link),
            _ => (&self.plain, &self.plain_link),
        }
    }

    /// The image in the rival's form.
    pub async fn subject(&self, way: Way, image: &str, like: &Subject) -> Result<Subject> {
        let (repository, port) = (format!("bench/{image}"), self.source(way).1.address().port());
        let (host, tag) = match way {
            Way::Soci => (self.name.as_str(), TAG),
            _ => ("127.0.0.1", STARGZ_TAG),
        };
        let mut facts = lab::image_facts(&self.plain, &repository, tag).await?;
        facts.registry = format!("{host}:{port}");
        Ok(Subject {
            image: facts,
            ..like.clone()
        })
    }

    /// A node on empty state.
    pub async fn node(&self, lab: &Lab, way: Way, name: &str) -> Result<Node> {
        let root = lab.work.dir(format!("{name}-rival"))?;
        // Short: the names of sockets are.
        let socket = lab.work.path().join(format!("{name}-r.sock"));
        let mut command = Command::new(
            self.dir
                .join("tree/usr/bin")
                .join(needs(way).first().copied().unwrap_or_default()),
        );
        let config = match way {
            Way::Soci => {
                let config = lab.work.write(format!("{name}-rival.toml"), "")?;
                command.arg("--root").arg(&root).arg("--address").arg(&socket);
                command.arg("--config").arg(config);
                command.env("SSL_CERT_FILE", certificate(&self.dir, &self.name));
                format!(
                    "[host.\"https://127.0.0.1:{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {}\n",
                    self.tls_link.address().port(),
                    toml::Value::from(certificate(&self.dir, &self.name).to_string_lossy().into_owned()),
                )
            }
            _ => {
                let config = r#"{"NoPrometheus": true, "Direct": true}"#;
                let config = lab.work.write(format!("{name}-rival.json"), config)?;
                command.arg(&root).arg(&socket).arg(config);
                format!(
                    "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
                    self.plain_link.url()
                )
            }
        };
        without_proxies(&mut command);
        let daemon = Process::spawn(&format!("{name}-rival"), command, &lab.work, false)?;
        // CRI does not tell it how long layers are, and without that it tries for many seconds.
        let puller = (way == Way::Soci).then(|| {
            let program = self.dir.join("tree/usr/bin/soci");
            (program, certificate(&self.dir, &self.name))
        });
        let rival = Rival {
            name: way.name(),
            daemon,
            socket,
            puller,
        };
        Node::start_rival(&lab.work, name, rival, &config).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_of_the_rivals_that_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let why = |way| why_not(way, dir.path()).unwrap_or_default();
        assert!(why(Way::Stargz).contains("bench-peers.sh"));
        std::fs::create_dir_all(dir.path().join("registry")).unwrap();
        let bin = dir.path().join("tree/usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        assert!(why(Way::Stargz).contains("stargz-daemon not in"));
        std::fs::write(bin.join("stargz-daemon"), "").unwrap();
        assert_eq!(why(Way::Stargz), "");
        assert!(why(Way::Soci).contains("soci-snapshotter-grpc, soci not in"));
        assert_eq!(absent(&[Way::Local, Way::Nydus, Way::Stargz], dir.path()).len(), 1);
    }
}
