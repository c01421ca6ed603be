//! The clients of the matrix, each with the server first and a good registry next.
//!
//! In: cells. Out: pulls. Invariant: a pull is believed only when what was stored is right ([`Client::verify`], and podman's
//! after each pull).
//! Not here: what goes wrong.

use std::sync::Arc;

use headstart_loadtest::playground::{
    containerd::{Containerd, Release, Snapshotter},
    debian_tree::DebianTree,
    proxy::Proxy,
};

use super::cell::{Cell, Outcome, REPOSITORY};
use crate::{
    containerd::hosts,
    podman::with_storage,
    skopeo::registries_conf,
    support::{Bench, images::contents, stored},
};

/// A large layer of the matrix is three of them.
const PART_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Containerd16,
    Containerd21,
    /// It asks for large layers in ranges, several at a time.
    Containerd21Parts,
    Podman,
    /// The image is one of an index.
    PodmanIndex,
}

impl Column {
    pub const ALL: [Column; 5] = [
        Column::Containerd16,
        Column::Containerd21,
        Column::Containerd21Parts,
        Column::Podman,
        Column::PodmanIndex,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Column::Containerd16 => "containerd 1.6",
            Column::Containerd21 => "containerd 2.1",
            Column::Containerd21Parts => "containerd 2.1, in parts",
            Column::Podman => "podman 5",
            Column::PodmanIndex => "podman 5, index",
        }
    }
}

pub enum Client {
    Containerd(Box<Containerd>),
    Podman { forky: DebianTree, server: String },
}

impl Client {
    /// One daemon for all cells of a column: each cell is a registry of its own, with its own hosts.toml.
    pub async fn start(bench: &Bench, column: Column, cells: &[Arc<Cell>], proxy: &Proxy) -> Client {
        let forky = bench.forky().await;
        let release = match column {
            Column::Podman | Column::PodmanIndex => {
                let server = proxy.address().to_string();
                return Client::Podman { forky, server };
            }
            Column::Containerd16 => Release::Machine,
            Column::Containerd21 => Release::Forky { forky, part_bytes: 0 },
            Column::Containerd21Parts => Release::Forky {
                forky,
                part_bytes: PART_BYTES,
            },
        };
        let dir = format!("hosts-{}", column as usize);
        for cell in cells {
            hosts(bench, &dir, &cell.registry, &[&proxy.url(), &cell.next.url()]);
        }
        let name = format!("node-{}", column as usize);
        let hosts_dir = bench.dir(&dir);
        let started = Containerd::start_release(&bench.work, &name, release, &Snapshotter::Overlayfs, &hosts_dir);
        Client::Containerd(Box::new(started.await.unwrap()))
    }

    pub async fn pull(&self, cell: &Cell, bench: &Bench, round: &str) -> Result<(), String> {
        match self {
            Client::Containerd(containerd) => {
                let pulled = containerd
                    .cri
                    .pull(&cell.reference())
                    .await
                    .map_err(|e| e.to_string())?;
                assert_eq!(pulled, cell.image.config_digest.to_string());
                Ok(())
            }
            Client::Podman { forky, server } => {
                let name = format!("{}-{round}", cell.registry);
                let next = cell.next.address().to_string();
                let conf = registries_conf(&cell.registry, server, &next);
                let conf = bench.work.write(format!("{name}.conf"), &conf).unwrap();
                let mut pull = with_storage(bench, &name, forky.command(&bench.work, "podman"));
                pull.env("CONTAINERS_REGISTRIES_CONF", conf);
                // Its own repetitions take half a minute and change nothing.
                pull.args(["pull", "--quiet", "--retry", "0"]);
                pull.arg(format!("docker://{}/{REPOSITORY}:v1", cell.registry));
                bench.run(&name, pull).await?;
                stored::assert_in_storage(&bench.dir(&format!("{name}.root")), &cell.image);
                Ok(())
            }
        }
    }

    /// Everything that was pulled is in containerd's content store, and everything in the store is what its name says.
    pub fn verify(&self, cells: &[Arc<Cell>], outcomes: &[Outcome]) {
        let Client::Containerd(containerd) = self else {
            return;
        };
        let found = stored::containerd(&containerd.dir);
        for (cell, outcome) in cells.iter().zip(outcomes) {
            if !matches!(outcome, Outcome::Failed(_)) {
                let missing: Vec<_> = contents(&cell.image).difference(&found).cloned().collect();
                assert!(missing.is_empty(), "{}: {missing:?} were never stored", cell.registry);
            }
        }
    }
}
