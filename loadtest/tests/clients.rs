//! Real clients pull through the built server: containerd 1.6 and 2.1, skopeo, podman, buildah, crane, oras, and Docker's
//! contract; over TLS, with client certificates and with passwords; past a full disk; and the behaviour matrix, in which the upstream misbehaves.
//!
//! In: Debian 12's clients, those of forky (`scripts/debian-root.sh`), `target/*/headstart-server`, docker-registry, the
//! scripted origin. Out: assertions, and `target/playground/matrix.md`.
//! Invariant: what a client has stored is compared with the upstream by digest, every manifest, config and layer; a
//! missing tool fails, it never skips. Tests share nothing and may run at the same time.
//! Not here: lazy pulls (`e2e`), and requests one by one (the server's own tests).

#[path = "clients/support/mod.rs"]
mod support;

#[path = "clients/containerd.rs"]
mod containerd;
#[path = "clients/crane.rs"]
mod crane;
#[path = "clients/credentials.rs"]
mod credentials;
#[path = "clients/crowd.rs"]
mod crowd;
#[path = "clients/docker.rs"]
mod docker;
#[path = "clients/full_disk.rs"]
mod full_disk;
#[path = "clients/matrix/mod.rs"]
mod matrix;
#[path = "clients/oras.rs"]
mod oras;
#[path = "clients/podman.rs"]
mod podman;
#[path = "clients/skopeo.rs"]
mod skopeo;
#[path = "clients/tls.rs"]
mod tls;
