#!/usr/bin/env bash
# The demo, from a fresh clone, as root on Debian 12 with a Rust toolchain:  ./demo.sh
# In: the tree; arguments go to `headstart-loadtest playground` (--help lists them: --rounds N, --keep, --json, ...).
# Out: a table of the same container started by ordinary pulls and lazily, from cold and a second time, and the path of a
# page with plots. Leaves nothing running, also on Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")"

if [ "$(id -u)" -ne 0 ]; then
    echo "demo.sh: must be root: it starts containers and mounts file systems" >&2
    exit 1
fi
./scripts/install-packages.sh
cargo build --release --locked --workspace --bins

target=$(cargo metadata --format-version 1 --no-deps --offline | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
exec "$target/release/headstart-loadtest" playground "$@"
