#!/usr/bin/env bash
# Other gzip writers and readers, and a writer of eStargz and zstd:chunked, for tests:  ./scripts/gzip-tools.sh
# In: apt's sources. Out: on standard output, the directory with pigz, unpigz, zopfli and ctr-remote (of the stargz
# snapshotter), below $HEADSTART_GZIP_TOOLS or target/gzip-tools. Made once; delete it to have it made anew.
# They are unpacked, not installed: containerd uses unpigz where it finds it, and whether it does is the test's choice.
set -euo pipefail
cd "$(dirname "$0")/.."

home=${HEADSTART_GZIP_TOOLS:-${CARGO_TARGET_DIR:-target}/gzip-tools}
mkdir -p "$home"
home=$(cd "$home" && pwd)
exec 9>"$home/lock"
flock -w 300 9 || { echo "gzip-tools: another run held the lock for 300 s" >&2; exit 1; }
if ! [ -x "$home/tree/usr/bin/zopfli" ] || ! [ -x "$home/tree/usr/bin/ctr-remote" ]; then
    work=$(mktemp -d "$home/making.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # A machine that has never asked has no lists.
    apt-cache policy pigz | grep -q 'Candidate: [0-9]' || apt-get update -qq
    (cd "$work" && apt-get download -qq pigz zopfli stargz-snapshotter 2>&1 | grep -v unsandboxed >&2 || true)
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/tree"; done
    rm -rf "$home/tree"
    mv "$work/tree" "$home/tree"
fi
echo "$home/tree/usr/bin"
