#!/usr/bin/env bash
# Real images to measure on:  ./scripts/bench-images.sh [python] [node] [redis] [nginx] [manyfiles]   (default: the first two)
# In: Debian, PyPI and npm packages, through the machine's own apt, pip and npm. Out: for each of python-v1, python-v2,
# node-v1, node-v2, redis-v1, nginx-v1 and manyfiles-v1 an OCI layout, and beside it NAME.layers, the paths of its layers,
# bottom first; on standard output the directory of them all ($HEADSTART_BENCH_IMAGES, or bench-images in the target
# directory). config/coldstart.toml says how each is started.
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

# Services of Debian. What they listen on is the list's business.
redis_image() {
    [ -e "$home/redis-v1.layers" ] && return
    base
    mkdir -p "$work/redis-v1"
    image redis-v1 "redis-server" <<'FILE'
RUN mkdir -p /data && chown redis:redis /data
CMD ["redis-server", "--dir", "/data"]
FILE
}

nginx_image() {
    [ -e "$home/nginx-v1.layers" ] && return
    base
    mkdir -p "$work/nginx-v1"
    echo '<h1>headstart</h1>' >"$work/nginx-v1/index.html"
    image nginx-v1 "nginx" <<'FILE'
COPY index.html /var/www/html/index.html
CMD ["nginx", "-g", "daemon off;"]
FILE
}

# Some 60,000 small files of npm packages, of which a start reads a few hundred: what a large front-end's tool chain is.
manyfiles_image() {
    local name=manyfiles-v1 context=$work/manyfiles-v1
    [ -e "$home/$name.layers" ] && return
    if ! command -v npm >/dev/null; then
        say "$name is left out: there is no npm here"
        return
    fi
    base
    mkdir -p "$context/app"
    say "$name: from npm"
    (cd "$context/app" && npm init -y >/dev/null &&
        npm install --loglevel=error --legacy-peer-deps --no-audit --no-fund --ignore-scripts \
            react-scripts@5 @mui/icons-material@5 date-fns@2 typescript@5 lodash@4 react@18 react-dom@18 \
            @mui/material@5 @angular/cli@16 aws-sdk@2 >>"$work/log" 2>&1) ||
        { tail -n 20 "$work/log" >&2; exit 1; }
    cat >"$context/walk.js" <<'SCRIPT'
const fs = require('fs'), path = require('path');
let names = 0, read = 0, bytes = 0;
(function walk(dir) {
    for (const entry of fs.readdirSync(dir, { withFileTypes: true })) {
        const file = path.join(dir, entry.name);
        if (entry.isDirectory()) walk(file);
        else if (entry.isFile() && names++ % 120 == 0 && read < 500) { read++; bytes += fs.readFileSync(file).length; }
    }
})('/srv/tree');
console.log('READY', names, read, bytes);
SCRIPT
    image "$name" "nodejs" <<'FILE'
COPY app /srv/tree/
COPY walk.js /srv/walk.js
CMD ["node", "/srv/walk.js"]
FILE
}

[ $# -gt 0 ] || set -- python node
for what in "$@"; do
    for family in $what; do
        case $family in
        python)
            python_image v1 "python3" "flask==2.3.3 requests==2.31.0"
            python_image v2 "python3 python3-yaml" "flask==3.0.3 requests==2.32.3"
            ;;
        redis | nginx | manyfiles) "${family}_image" ;;
        node)
            node_image v1 "nodejs" "express@4.18.2"
            node_image v2 "nodejs ca-certificates" "express@4.19.2 lodash@4"
            ;;
        *)
            say "there is no $family; there are python, node, redis, nginx and manyfiles"
            exit 2
            ;;
        esac
    done
done
echo "$home"
