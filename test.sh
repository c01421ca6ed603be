#!/usr/bin/env bash
# All tests, from a fresh clone, as root on Debian 12 with a Rust toolchain:  ./test.sh
# In: the tree. Out: exit status 0 only when formatting, lints and every test pass.
# Arguments go to the test runner:  ./test.sh --test e2e_lazy
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

step "packages"
./scripts/install-packages.sh
# Newer clients than Debian 12 has; half a minute the first time, kept below target/.
./scripts/debian-root.sh forky >/dev/null
./scripts/debian-root.sh trixie >/dev/null
./scripts/debian-root.sh bookworm >/dev/null

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

# The end-to-end tests run the three binaries, so they are built before any test is.
step "build"
cargo build --workspace --bins --locked

step "cargo test"
cargo test --workspace --locked "$@"
