//! End to end: real containerd, runc, docker-registry, skopeo and the built binaries, as root.
//!
//! In: Debian's tools (test.sh installs them), `target/*/headstart-{server,shim}`. Out: assertions.
//! Invariant: one test at a time (they share two cores, and some count bytes); a missing tool fails, it never skips.
//! Not here: what needs no containerd; the crates test that themselves.

#[path = "e2e/support.rs"]
mod support;

#[path = "e2e/clients.rs"]
mod clients;
#[path = "e2e/coldstart.rs"]
mod coldstart;
#[path = "e2e/crash.rs"]
mod crash;
#[path = "e2e/demo.rs"]
mod demo;
#[path = "e2e/images.rs"]
mod images;
#[path = "e2e/lazy.rs"]
mod lazy;
#[path = "e2e/ordinary.rs"]
mod ordinary;
#[path = "e2e/prefetch.rs"]
mod prefetch;
#[path = "e2e/proxy_down.rs"]
mod proxy_down;
#[path = "e2e/readiness.rs"]
mod readiness;
#[path = "e2e/shipped_hosts.rs"]
mod shipped_hosts;
#[path = "e2e/survival.rs"]
mod survival;
