#!/usr/bin/env bash
# Ordinary pulls alone and while 20 images are converted at once, and the memory that this takes:  ./scripts/bench-busy.sh [ARGUMENT...]
# In: arguments for `headstart-loadtest bench-busy` (see its --help). Out: a table; exit status 1 if memory is over its bound.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" bench-busy "$@"
