//! What we make of a layer against what containerd makes of it, attribute by attribute.
//!
//! In: random and hand-made layers. Out: the same tree, or a refusal on both sides.
//! Invariant: containerd's own unpacker is the oracle (its differ, as a pull uses it); where it fails, we refuse.
//! `HEADSTART_UNPACK_ROUNDS` and `HEADSTART_UNPACK_SEED` make the random part longer and other.
//! Not here: mounts and nodes (`loadtest/tests/e2e`).

mod compressed;
mod images;
mod made;
mod runtime;
mod stargz;
mod wild;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
