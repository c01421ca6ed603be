#!/usr/bin/env bash
# What reads cost in a container from lazily mounted layers, beside the same layers unpacked:  ./scripts/bench-node.sh [ARGUMENT...]
# In: arguments for `headstart-loadtest bench-node` (see its --help). `--rivals stargz,soci` measures those too: their programs are
# made by `./scripts/bench-peers.sh none`, the images' forms by the benchmark itself.
# Out: tables; some 6 GiB below the temporary directory meanwhile, 12 with rivals.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-packages.sh
cargo build --release --workspace --bins --locked
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" bench-node "$@"
