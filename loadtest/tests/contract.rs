//! The containerd contract on the containerds that there are: 1.6 of this machine, 1.7 of Debian trixie and 2.1 of forky.
//!
//! In: the built binaries, real containerds, runc and crun, as root. Out: assertions.
//! Invariant: one node at a time (they share two cores); a missing tool fails, it never skips.
//! Not here: what a call of the snapshots service answers (`client-shim/tests`), the promise to users (`e2e`).

#[path = "contract/support.rs"]
mod support;

#[path = "contract/cri.rs"]
mod cri;
#[path = "contract/ctr.rs"]
mod ctr;
#[path = "contract/many.rs"]
mod many;
#[path = "contract/pod_users.rs"]
mod pod_users;
#[path = "contract/users.rs"]
mod users;
