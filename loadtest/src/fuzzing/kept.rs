//! Inputs that are files of the repository: the seeds, and those that failed once.
//!
//! In: `fuzz/` and the entry points. Out: nothing, or a panic that names the file. Invariant: of each entry point at
//! least one kept input is accepted. Not here: what seeds are made of.

use std::fs;
use std::path::{Path, PathBuf};

use super::Target;
use super::watch::call;

/// Largest kept input.
const LEN_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct Kept {
    /// `fuzz/` of the repository.
    pub dir: PathBuf,
    /// The directory of an entry point's inputs.
    pub folder: fn(&'static str) -> &'static str,
}

impl Kept {
    /// `crate_dir`: of a crate at the top of the repository.
    pub fn beside(crate_dir: &str, folder: fn(&'static str) -> &'static str) -> Self {
        let dir = Path::new(crate_dir).join("../fuzz");
        Self { dir, folder }
    }

    fn of(&self, room: &str, target: &'static str) -> PathBuf {
        self.dir.join(room).join((self.folder)(target))
    }

    pub fn all_hold(&self, targets: &[Target]) {
        for (name, one) in targets {
            let mut accepted = 0;
            for room in ["seeds", "found"] {
                // Of most entry points nothing was ever found.
                for file in fs::read_dir(self.of(room, name)).into_iter().flatten() {
                    let path = file.expect("list kept inputs").path();
                    let input = fs::read(&path).expect("read a kept input");
                    assert!(input.len() <= LEN_MAX, "{}: small files only", path.display());
                    let held = call(*one, &input).unwrap_or_else(|how| panic!("{}: {how}", path.display()));
                    accepted += u32::from(held);
                }
            }
            assert!(accepted > 0, "no kept input of {name} is accepted");
        }
    }

    /// `fuzz/` is no part of the workspace, and nothing else compiles it: each entry point of a library has its target
    /// there, word for word, and its program, and there is no other.
    pub fn have_targets(&self, targets: &[Target], library: &str) {
        let manifest = fs::read_to_string(self.dir.join("Cargo.toml")).expect("read fuzz/Cargo.toml");
        for (name, _) in targets {
            let target = fs::read_to_string(self.dir.join(format!("fuzz_targets/{name}.rs"))).unwrap_or_default();
            let expected = format!(
                "//! `{library}::fuzz::{name}` under libFuzzer.\n#![no_main]\n\n\
                 libfuzzer_sys::fuzz_target!(|data: &[u8]| {{\n    {library}::fuzz::{name}(data);\n}});\n"
            );
            assert_eq!(target, expected, "fuzz/fuzz_targets/{name}.rs");
            let program = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
            assert!(manifest.contains(&program), "fuzz/Cargo.toml has no {name}");
        }
        for file in fs::read_dir(self.dir.join("fuzz_targets")).expect("list fuzz targets") {
            let path = file.expect("list fuzz targets").path();
            let target = fs::read_to_string(&path).expect("read a fuzz target");
            let is_known = targets
                .iter()
                .any(|(name, _)| path.file_stem().is_some_and(|stem| stem == *name));
            assert!(
                is_known || !target.contains(library),
                "{}: there is no such entry point",
                path.display()
            );
        }
    }

    /// Writes the seeds of every entry point anew.
    pub fn write_seeds<N: AsRef<Path>>(&self, targets: &[Target], seeds: impl Fn(&'static str) -> Vec<(N, Vec<u8>)>) {
        for (name, _) in targets {
            let folder = self.of("seeds", name);
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).expect("make a directory of seeds");
            for (seed, bytes) in seeds(name) {
                fs::write(folder.join(seed), bytes).expect("write a seed");
            }
        }
    }
}
