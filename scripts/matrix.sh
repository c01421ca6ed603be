#!/usr/bin/env bash
# Prints the behaviour matrix as a table:  ./scripts/matrix.sh
# In: the tree. Out: what containerd 1.6, containerd 2.1 (whole layers, and in parts) and podman (an image, and an index)
# do when the upstream behind the server misbehaves, one row a misbehaviour; exit status 0 when every cell is as it must
# be. About two minutes after building. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

{
    ./scripts/install-packages.sh
    ./scripts/debian-root.sh forky >/dev/null
    cargo build --workspace --bins --locked --quiet
} >&2
status=0
# The test prints the table too, also when a cell is wrong; here it goes to standard output alone.
output=$(cargo test --locked --quiet --workspace --test clients matrix -- --nocapture 2>&1) || status=$?
grep '^|' <<<"$output" || true
[ "$status" -eq 0 ] || grep -v '^|' <<<"$output" >&2
exit "$status"
