#!/usr/bin/env bash
# Programs of Nydus that Debian does not have, from their crate:  ./scripts/peers/nydus.sh PROGRAM...
# In: which are needed: nydus-image, which converts images, and nydusd, which serves them. A Rust toolchain and the
# registry of crates. Out: on standard output the directory that has them: peers/bin in the target directory. Where one
# is missing both are compiled, in some minutes; who comes meanwhile waits. Needs root then.
set -euo pipefail
readonly VERSION=2.2.0 # the latest that has the programs and is in the registry
cd "$(dirname "$0")/../.."

mkdir -p "${CARGO_TARGET_DIR:-target}/peers"
home=$(cd "${CARGO_TARGET_DIR:-target}/peers" && pwd)
exec 9>"$home/nydus.lock"
flock -w 1800 9 || { echo "nydus: another run held the lock for half an hour" >&2; exit 1; }
are_there() {
    local program
    for program in "$@"; do [ -x "$home/bin/$program" ] || return 1; done
}
if ! are_there "$@"; then
    ./scripts/install-packages.sh cmake # its zlib is built with it
    echo "nydus: compiling nydus-image and nydusd $VERSION" >&2
    # By force: one of them alone may be there.
    CARGO_TARGET_DIR=$home/build nice cargo install nydus-rs --version "$VERSION" --locked --force --jobs 2 \
        --bin nydus-image --bin nydusd --root "$home" >"$home/nydus.log" 2>&1 9>&- ||
        { echo "nydus: failed to compile:" >&2; tail -n 5 "$home/nydus.log" >&2; rm -rf "$home/build"; exit 1; }
    rm -rf "$home/build"
fi
echo "$home/bin"
