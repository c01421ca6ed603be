#!/usr/bin/env bash
# Installs, from Debian, what the tests and the demo run against: real containerd, runc, registries and image tools.
# In: names of further packages, for who needs more than all do. Out: these and the packages below, installed. Does nothing when
# they are there already. Needs root.
#
# Not here: the Rust toolchain (rustup or the machine's own), and anything from elsewhere than Debian.
set -euo pipefail

packages=(
    containerd runc         # the runtime we snapshot for; its service is neither needed nor used
    docker-registry         # a real upstream
    skopeo buildah          # a second client; the image builder
    nginx-light             # what the mirror is measured against (scripts/bench-mirror.sh)
    debootstrap             # the demo image's base layer
    fuse3 attr              # fusermount3 as a fallback; getfattr for people
    systemd                 # as a service manager in namespaces of its own; it does not become the init of this machine
    erofs-utils             # a second opinion on the EROFS images that we write
    xfsprogs btrfs-progs    # filesystems that share blocks between files, for tests of the node's cache
    python3 python3-pip     # the demo image's application layer
    gcc libc6-dev make      # crates with C inside (zstd, TLS)
    ca-certificates
    "$@"
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "install-packages: not root, and these packages are missing: ${missing[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]}" >&2

# A package that starts a service must not: the demo and the tests run their own, private processes.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made_policy=1
fi
trap '[ -z "$made_policy" ] || rm -f "$policy"' EXIT

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
