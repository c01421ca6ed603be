#!/usr/bin/env bash
# Real images to measure conversions on:  ./scripts/bench-images.sh [python] [node]   (default: both)
# In: Debian, PyPI and npm packages, through the machine's own apt, pip and npm. Out: for each of python-v1, python-v2,
# node-v1 and node-v2 an OCI layout, and beside it NAME.layers, the paths of its layers, bottom first; on standard output
# the directory of them all ($HEADSTART_BENCH_IMAGES, or bench-images in the target directory).
# v2 is v1 built again with newer dependencies: other times on every file, most contents the same. An image is made once,
# and appears when it is whole; delete it to have it made anew. Needs root (chroots). Runs of it wait for each other.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "bench-images: not root" >&2; exit 1; }
./scripts/install-packages.sh

home=${HEADSTART_BENCH_IMAGES:-${CARGO_TARGET_DIR:-target}/bench-images}
mkdir -p "$home"
home=$(cd "$home" && pwd)
exec 9>"$home/lock"
flock -w 1800 9 || { echo "bench-images: another run held the lock for half an hour" >&2; exit 1; }

suite=bookworm
python=3.11 # of that suite
work=$home/building
# A killed run leaves its tree; debootstrap mounts proc and sys in it.
clear_work() {
    { grep -o " $work/[^ ]*" /proc/mounts || true; } | sort -r | while read -r mount; do umount -l "$mount"; done
    rm -rf "$work"
}
clear_work
trap clear_work EXIT
mkdir -p "$work"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$work/policy.json"
printf '[storage]\ndriver = "vfs"\n' >"$work/storage.conf"
echo '{}' >"$work/auth.json"

say() { echo "bench-images: $*" >&2; }

# buildah with nothing of the system's: storage, policy and credentials are ours.
own_buildah() {
    local verb=$1
    shift
    CONTAINERS_STORAGE_CONF=$work/storage.conf REGISTRY_AUTH_FILE=$work/auth.json \
        buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$verb" \
        --signature-policy "$work/policy.json" "$@" >>"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }
}

. ./scripts/debian-mirror.sh

# The base is kept, so that images made later share its layer.
base() {
    [ -e "$home/base.tar" ] && return
    say "Debian $suite (debootstrap, half a minute)"
    local from
    from=$(mirror)
    [ -n "$from" ] || { say "no Debian mirror in apt's sources; set HEADSTART_DEBIAN_MIRROR"; exit 1; }
    debootstrap --variant=minbase "$suite" "$work/base" "$from" >>"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    tar --numeric-owner -cf "$work/base.tar" -C "$work/base" .
    rm -rf "$work/base"
    mv "$work/base.tar" "$home/base.tar"
}

# NAME, the packages of Debian, and on standard input what follows in the containerfile; $work/NAME is the context.
image() {
    local name=$1 packages=$2 context=$work/$1
    ln -f "$home/base.tar" "$context/base.tar"
    {
        echo "FROM scratch"
        echo "ADD base.tar /"
        echo "RUN apt-get update -qq \\"
        echo " && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages \\"
        echo " && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb"
        cat
    } >"$context/Containerfile"
    say "$name: layers (buildah; apt-get install $packages)"
    own_buildah build --layers --isolation chroot --network host -t "$name" -f "$context/Containerfile" "$context"
    own_buildah push "$name" "oci:$work/$name.oci:$name"
    python3 - "$work/$name.oci" "$home/$name" >"$work/$name.layers" <<'PYTHON'
import json, sys
made, final = sys.argv[1:]
blob = lambda digest: "/blobs/" + digest.replace(":", "/")
manifest = json.load(open(made + "/index.json"))["manifests"][0]["digest"]
for layer in json.load(open(made + blob(manifest)))["layers"]:
    print(final + blob(layer["digest"]))
PYTHON
    rm -rf "${home:?}/$name"
    mv "$work/$name.oci" "$home/$name"
    mv "$work/$name.layers" "$home/$name.layers"
}

# VERSION, packages of Debian, packages of PyPI. Wheels are chosen for the image's python.
python_image() {
    local name=python-$1 context=$work/python-$1
    [ -e "$home/$name.layers" ] && return
    base
    mkdir -p "$context"
    say "$name: $3 from PyPI"
    # shellcheck disable=SC2086 # a list
    python3 -m pip install --quiet --no-compile --root-user-action=ignore --no-cache-dir --only-binary=:all: \
        --implementation cp --python-version "$python" --platform "manylinux2014_$(uname -m)" \
        --target "$context/site" $3 >>"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
    echo "import flask, requests; print('READY', flask.__name__)" >"$context/app.py"
    image "$name" "$2" <<'FILE'
COPY site /usr/lib/python3/dist-packages/
COPY app.py /app/app.py
CMD ["python3", "/app/app.py"]
FILE
}

# VERSION, packages of Debian, packages of npm.
node_image() {
    local name=node-$1 context=$work/node-$1
    [ -e "$home/$name.layers" ] && return
    if ! command -v npm >/dev/null; then
        say "$name is left out: there is no npm here"
        return
    fi
    base
    mkdir -p "$context/app"
    say "$name: $3 from npm"
    # shellcheck disable=SC2086 # a list
    (cd "$context/app" && npm init -y >/dev/null &&
        npm install --loglevel=error --no-audit --no-fund --ignore-scripts $3 >>"$work/log" 2>&1) ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    echo "const app = require('express')(); console.log('READY');" >"$context/app/app.js"
    image "$name" "$2" <<'FILE'
COPY app /app/
CMD ["node", "/app/app.js"]
FILE
}

for what in "${@:-python node}"; do
    for family in $what; do
        case $family in
        python)
            python_image v1 "python3" "flask==2.3.3 requests==2.31.0"
            python_image v2 "python3 python3-yaml" "flask==3.0.3 requests==2.32.3"
            ;;
        node)
            node_image v1 "nodejs" "express@4.18.2"
            node_image v2 "nodejs ca-certificates" "express@4.19.2 lodash@4"
            ;;
        *)
            say "there is no $family; there are python and node"
            exit 2
            ;;
        esac
    done
done
echo "$home"
