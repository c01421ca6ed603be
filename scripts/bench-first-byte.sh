#!/usr/bin/env bash
# Time to the first byte of a cold blob, through the mirror and directly, idle and while it converts:  ./scripts/bench-first-byte.sh [ARGUMENT...]
# In: arguments for `headstart-loadtest bench-first-byte` (see its --help). Out: a table; about four minutes by default.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" bench-first-byte "$@"
