#!/usr/bin/env bash
# Daemons killed with -9 under readers: Headstart's shim, beside stargz and SOCI:  ./scripts/survival-beside-rivals.sh [ROUNDS [ARGUMENT...]]
# In: kills of each system (default: 10); further arguments for `headstart-loadtest survive` (see its --help), as `--kill server`.
# The others' programs are made by `./scripts/bench-peers.sh none`, the image's forms by the run itself.
# Out: a table: what readers got, how long they waited, whether mounts came back. Some 3 GiB below the temporary directory
# meanwhile. A report and no test: whatever the readers get, it succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/install-packages.sh
cargo build --release --workspace --bins --locked
rounds=${1:-10}
exec "${CARGO_TARGET_DIR:-target}/release/headstart-loadtest" survive --rivals stargz,soci --rounds "$rounds" "${@:2}"
