#!/usr/bin/env bash
# What reads cost in a container from lazily mounted layers, beside the same layers unpacked:  ./scripts/bench-node.sh [ARGUMENT...]
# In: arguments for `headstart-loadtest bench-node` (see its --help). Out: tables; some 6 GiB below the temporary directory meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-packages.sh
cargo build --release --workspace --bins --locked
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" bench-node "$@"
