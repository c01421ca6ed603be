#!/usr/bin/env bash
# The mirror against docker-registry (plain, proxy) and nginx, same machine, same content:  ./scripts/bench-mirror.sh [ARGUMENT...]
# In: arguments for `headstart-loadtest bench-mirror` (see its --help). Out: a table; about ten minutes by default.
# Needs root the first time, to install nginx from Debian. Other load on the machine blurs rates; ratios and CPU seconds
# stay comparable within one run.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install-packages.sh
cargo build --release --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" bench-mirror "$@"
