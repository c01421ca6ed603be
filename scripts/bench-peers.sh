#!/usr/bin/env bash
# Other lazy snapshotters, and images in their forms, for `headstart-loadtest coldstart --ways ...,stargz,soci,nydus`:
#   ./scripts/bench-peers.sh [NAME...]     names of config/coldstart.toml; default: all of it whose layout is there;
#                                          none: the programs alone, which is all that bench-node needs
# In: the images of scripts/bench-images.sh; Debian forky's packages of all three, and Nydus' crate. Out: on standard
# output a directory:
#   tree       a forky tree with the programs (they run on this machine as they are; stargz's daemon is built in it from
#              Debian's packaged library, since Debian packages no daemon; Nydus' is compiled by scripts/peers/nydus.sh)
#   registry   a docker-registry's storage: bench/NAME:v1 as it is with its SOCI index; bench/NAME:esgz optimised for
#              the list's command, which is what eStargz's authors measure; bench/NAME:nydus as RAFS v6
#   tls        a certificate for this machine's own name, because Debian's SOCI asks for its index by TLS only
# It is $HEADSTART_BENCH_PEERS, or bench-peers in the target directory. What is there is not made again; delete it to
# have it made anew. Some minutes of CPU an image, and for Nydus' daemon; Nydus is left out if that cannot be had. Needs
# root, 4 GB, and what scripts/install-packages.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "bench-peers: not root" >&2; exit 1; }

target=${CARGO_TARGET_DIR:-target}
images=${HEADSTART_BENCH_IMAGES:-$target/bench-images}
home=${HEADSTART_BENCH_PEERS:-$target/bench-peers}
mkdir -p "$home"/{registry,done,tls}
home=$(cd "$home" && pwd)
exec 9>"$home/lock"
flock -w 1800 9 || { echo "bench-peers: another run held the lock for half an hour" >&2; exit 1; }
say() { echo "bench-peers: $*" >&2; }

# A tree of its own: the script keeps one tree of a suite in a place.
tree=$(HEADSTART_DEBIAN_ROOTS=$home/roots ./scripts/debian-root.sh forky containerd runc soci-snapshotter \
    stargz-snapshotter fuse3 golang-go golang-github-containerd-stargz-snapshotter-dev \
    golang-google-grpc-dev ca-certificates dash bash coreutils mount util-linux)
ln -sfn "$tree" "$home/tree"
if ! [ -x "$tree/usr/bin/stargz-daemon" ]; then
    say "building stargz's daemon"
    mkdir -p "$tree/gopath/src/stargz-daemon"
    cp scripts/peers/stargz_daemon.go "$tree/gopath/src/stargz-daemon/main.go"
    [ -e "$tree/dev/null" ] || mknod -m 666 "$tree/dev/null" c 1 3
    # Without C, so that it runs outside of the tree too.
    # shellcheck disable=SC2016 # for the inner shell
    unshare -m sh -ec 'mount -t proc proc "$1/proc"; exec nice chroot "$1" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root \
        TMPDIR=/tmp GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0 GOPATH=/gopath:/usr/share/gocode \
        sh -ec "cd /gopath/src/stargz-daemon && go build -o /usr/bin/stargz-daemon ."' sh "$tree" >&2
fi

name=$(hostname)
if ! [ -e "$home/tls/$name.pem" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$name" -addext "subjectAltName=DNS:$name,IP:127.0.0.1" \
        -keyout "$home/tls/$name.key" -out "$home/tls/$name.pem.new" 2>/dev/null
    mv "$home/tls/$name.pem.new" "$home/tls/$name.pem"
fi

# NAME, layout, ready line or "-", command as JSON: a line each.
listed() {
    python3 - "$images" "$@" <<'PYTHON'
import json, os, sys, tomllib
images, wanted = sys.argv[1], sys.argv[2:]
for image in tomllib.load(open("config/coldstart.toml", "rb"))["images"]:
    if (not wanted or image["name"] in wanted) and os.path.isdir(f"{images}/{image.get('layout')}"):
        line = image["ready"].get("line", "-")
        print("\t".join([image["name"], image["layout"], line, json.dumps(image["command"])]))
PYTHON
}

work=$(mktemp -d)
pids=()
stop() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    { grep -o " $work/[^ ]*" /proc/mounts || true; } | sort -r | while read -r mount; do umount -l "$mount"; done
    rm -rf "$work"
}
trap stop EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $home/registry}, maintenance: {uploadpurging: {enabled: false}}}
http: {addr: '127.0.0.1:$port'}
YAML
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.grpc.v1.cri",
]
[grpc]
  address = "$work/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$work/opt"
TOML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 9>&- &
pids+=($!)
containerd --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 9>&- &
pids+=($!)
export CONTAINERD_ADDRESS=$work/c.sock
for _ in $(seq 100); do
    if ctr version >/dev/null 2>&1 && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.1
done
ours=127.0.0.1:$port
quietly() { "$@" >>"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }; }

listed "$@" | while IFS=$'\t' read -r image layout ready command; do
    [ ! -e "$home/done/$image" ] || continue
    say "$image: SOCI's index"
    quietly skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
        "oci:$images/$layout" "docker://$ours/bench/$image:v1" </dev/null
    quietly ctr images pull --plain-http "$ours/bench/$image:v1" </dev/null
    quietly "$tree/usr/bin/soci" create "$ours/bench/$image:v1" </dev/null
    quietly "$tree/usr/bin/soci" push --plain-http --existing-index allow "$ours/bench/$image:v1" </dev/null
    say "$image: eStargz, optimised for $command"
    wait_for=(--period 10)
    [ "$ready" = - ] || wait_for=(--period 60 --wait-on-line "$ready")
    quietly "$tree/usr/bin/ctr-remote" images optimize --oci "${wait_for[@]}" --args "$command" \
        "$ours/bench/$image:v1" "$ours/bench/$image:esgz" </dev/null
    quietly ctr images push --plain-http "$ours/bench/$image:esgz" </dev/null
    touch "$home/done/$image"
done

# Of a tree and with marks of its own, so that the others' stay as they are where Nydus comes later.
have_nydus() {
    local program programs snapshotter
    ! [ -x "$tree/usr/bin/nydusd" ] || return 0
    snapshotter=$(HEADSTART_DEBIAN_ROOTS=$home/nydus ./scripts/debian-root.sh forky nydus-snapshotter) || return 1
    programs=$(./scripts/peers/nydus.sh nydus-image nydusd) || return 1
    for program in "$snapshotter/usr/bin/containerd-nydus-grpc" "$programs/nydus-image" "$programs/nydusd"; do
        install "$program" "$tree/usr/bin/" || return 1
    done
}

if [ -z "$(listed "$@")" ]; then
    :
elif have_nydus; then
    listed "$@" | while IFS=$'\t' read -r image layout _ _; do
        [ ! -e "$home/done/$image.nydus" ] || continue
        say "$image: RAFS v6"
        quietly ./scripts/peers/nydus_image.py "$tree/usr/bin/nydus-image" "$images/$layout" \
            "$ours" "bench/$image" nydus </dev/null
        touch "$home/done/$image.nydus"
    done
else
    say "left out: Nydus, whose programs could not be had"
fi
echo "$home"
