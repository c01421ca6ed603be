//! Mutated inputs at entry points that read what others wrote: what the harnesses of every crate share.
//!
//! In: entry points (functions of bytes that say whether they accept), seeds, a mutation. Out: every property held; else the
//! input, made small, is in a file whose name is printed with seed and round, to be kept in `fuzz/found` with the mend.
//! Invariant: deterministic; `HEADSTART_FUZZ_ROUNDS` (for each entry point) and `HEADSTART_FUZZ_SEED` make it longer and other.
//! Not here: the entry points and what must hold (`src/fuzz.rs` of each crate), their seeds (`tests/fuzz*`).

mod driver;
mod kept;
pub mod mutate;
mod watch;

pub use driver::{Subject, run};
pub use kept::Kept;
pub use watch::Counting;

/// An entry point: its name, and the function.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// A test for each entry point with its usual number of rounds, and one that none is left out:
/// `fuzzed!(fuzz, headstart_server::fuzz, tar 800, layer 300)`, where `fuzz` takes the entry point and the number.
#[macro_export]
macro_rules! fuzzed {
    ($fuzz:path, $($room:ident)::+, $($target:ident $rounds:literal),* $(,)?) => {
        $crate::fuzzed!(@each $fuzz, ($($room)::+), $($target $rounds),*);

        #[test]
        fn no_entry_point_is_left_out() {
            assert_eq!($($room)::+::TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }
    };
    (@each $fuzz:path, $room:tt, $($target:ident $rounds:literal),*) => {
        $($crate::fuzzed!(@one $fuzz, $room, $target $rounds);)*
    };
    (@one $fuzz:path, ($($room:ident)::+), $target:ident $rounds:literal) => {
        #[test]
        fn $target() {
            $fuzz((stringify!($target), $($room)::+::$target), $rounds);
        }
    };
}
