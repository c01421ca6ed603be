#!/usr/bin/env bash
# What converting real images costs, beside the floor and beside other converters:  ./scripts/bench-ingest.sh [ROUNDS] [IMAGE...]
# In: how often (3), and of which images (python-v1 node-v1; scripts/bench-images.sh makes them and their v2). Out: for each
# image a table of wall and CPU seconds, peak memory, bytes stored, and ratios to `gzip -dc | sha256sum`; then what of each v2 is
# new after its v1. A peer that cannot be had is left out with a line that says so. Needs root the first time.
#
# Peers: `soci create` (an index beside the blob; it converts nothing) and `ctr-remote images optimize --no-optimize` (eStargz), both
# from Debian forky and talking to a private containerd, whose own share of the work is not counted; `nydus-image create` over
# unpacked layers, which it needs: Debian does not have it, so it is the one in the PATH, or compiled from its crate, once.
# $HEADSTART_BENCH_BINARY measures another headstart-server; with $HEADSTART_BENCH_LOADTEST nothing of ours is built.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=3
[[ ${1:-} =~ ^[1-9][0-9]?$ ]] && { rounds=$1; shift; }
images=("$@")
[ ${#images[@]} -gt 0 ] || images=(python-v1 node-v1)

./scripts/install-packages.sh
[ -n "${HEADSTART_BENCH_BINARY:-}" ] && [ -n "${HEADSTART_BENCH_LOADTEST:-}" ] || cargo build --release --locked --workspace --bins
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
server=${HEADSTART_BENCH_BINARY:-$target/release/headstart-server}
loadtest=${HEADSTART_BENCH_LOADTEST:-$target/release/headstart-loadtest}
home=$(./scripts/bench-images.sh)
# A tree of its own: the tests' would be made anew each time.
tree=$(HEADSTART_DEBIAN_ROOTS=${HEADSTART_BENCH_ROOTS:-$target/peers} ./scripts/debian-root.sh forky \
    containerd runc soci-snapshotter nydus-snapshotter stargz-snapshotter dash coreutils mount)

# Some minutes, the first time.
nydus=$(command -v nydus-image) || nydus=$(./scripts/peers/nydus.sh nydus-image)/nydus-image || nydus=

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-ingest.XXXXXX")
daemon=
finish() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT
mkdir "$work/soci"

# containerd in the tree, which is its root in a mount namespace of its own (loadtest/src/playground/debian_tree.rs has the reasons).
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/containerd.sock"
TOML
# shellcheck disable=SC2016 # expanded inside
unshare --mount --propagation private -- sh -ec '
    tree=$1 work=$2
    mount --bind "$tree" "$tree"
    mount -t proc proc "$tree/proc"; mount --rbind /sys "$tree/sys"; mount --rbind /dev "$tree/dev"
    mkdir -p "$tree/var/lib"
    for dir in run tmp var/tmp root var/lib; do mount -t tmpfs tmpfs "$tree/$dir"; done
    mkdir -p "$tree/var/lib/soci-snapshotter-grpc" "$tree$work"
    mount --bind "$work/soci" "$tree/var/lib/soci-snapshotter-grpc"
    mount --bind "$work" "$tree$work"
    cd "$tree"; mkdir run/host; pivot_root . run/host; umount -l /run/host; cd /
    exec containerd --config "$work/containerd.toml"
' sh "$tree" "$work" >"$work/containerd.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    [ ! -S "$work/containerd.sock" ] || break
    sleep 0.1
done
# A command beside it. Its own entering is a few milliseconds.
inside="nsenter --mount --root --wd -t $daemon env CONTAINERD_ADDRESS=$work/containerd.sock"

have() { [ -S "$work/containerd.sock" ] && [ -x "$tree/usr/bin/$1" ]; }

for image in "${images[@]}"; do
    [ -e "$home/$image.layers" ] || { echo "bench-ingest: there is no image $image in $home" >&2; exit 2; }
    mapfile -t layers <"$home/$image.layers"
    echo "== $image"
    peers=()
    left_out=()
    if have ctr; then
        tar -C "$home/$image" -cf "$work/image.tar" .
        name=localhost/bench:$image
        $inside ctr images import --no-unpack --base-name localhost/bench "$work/image.tar" >"$work/import.log" 2>&1 ||
            { echo "bench-ingest: containerd does not take $image:" >&2; tail -n 5 "$work/import.log" >&2; }
        rm "$work/image.tar"
    fi
    if have soci; then
        # What an earlier run made would be found; what this one made is its output.
        peers+=(--peer "soci create=rm -rf $work/soci/*; $inside soci create --min-layer-size 0 $name >&2; cp -r $work/soci/. \"\$OUT\"")
    else
        left_out+=("soci: no soci-snapshotter in this Debian")
    fi
    if have ctr-remote; then
        # What an earlier round made goes first; what this one made is in the content store, and its size is put in $OUT.
        content=$work/root/io.containerd.content.v1.content
        peers+=(--peer "ctr-remote (eStargz)=$inside ctr images rm --sync $name-esgz >&2 || true
            before=\$(du -sk $content | cut -f1)
            $inside ctr-remote images optimize --no-optimize --oci $name $name-esgz >&2
            fallocate -l \$((\$(du -sk $content | cut -f1) - before))KiB \"\$OUT/blobs\"")
    else
        left_out+=("ctr-remote: no stargz-snapshotter in this Debian")
    fi
    if [ -x "$nydus" ]; then
        peers+=(--peer "gzip -dc, nydus-image create=i=0; for layer; do i=\$((i + 1)); gzip -dc <\"\$layer\" >\"\$OUT/tar\"
            $nydus create --type tar-rafs --fs-version 6 --compressor zstd --blob-dir \"\$OUT\" --bootstrap \"\$OUT/\$i.boot\" \"\$OUT/tar\" >&2
            rm \"\$OUT/tar\"; done")
    else
        left_out+=("nydus-image: none in the PATH, and it could not be compiled")
    fi
    "$loadtest" bench-ingest --rounds "$rounds" --headstart "$server" "${peers[@]}" "${layers[@]}"
    for line in "${left_out[@]}"; do
        echo "left out: $line"
    done
    # The next image may share layers with it, which would then cost nothing.
    ! have ctr || $inside ctr images rm --sync "$name" "$name-esgz" >"$work/remove.log" 2>&1 || true
done

for family in python node; do
    if [ -e "$home/$family-v1.layers" ] && [ -e "$home/$family-v2.layers" ]; then
        mapfile -t first <"$home/$family-v1.layers"
        mapfile -t second <"$home/$family-v2.layers"
        echo "== $family-v2 after $family-v1"
        "$server" dedup --layers "${first[@]}" -- "${second[@]}"
    fi
done
