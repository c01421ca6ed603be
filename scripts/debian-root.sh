#!/usr/bin/env bash
# A tree of a Debian release with what tests want of it:  ./scripts/debian-root.sh SUITE [PACKAGE...]
# In: forky, trixie or bookworm, or any suite and the packages wanted; the Debian mirror of this machine's own apt configuration
# ($HEADSTART_DEBIAN_MIRROR wins), and its archive keys.
# Out: the tree's path on standard output; what was asked for and what came is in TREE/headstart-packages ("NAME VERSION",
# "NAME missing"). The tree is below SUITE in $HEADSTART_DEBIAN_ROOTS, or in target. It is made once; delete it to have it
# made anew.
#
# Packages are fetched and unpacked, never configured: no maintainer script runs, no service starts, and it takes a
# quarter of debootstrap's time. That is enough for programs that only need their libraries; this is not a Debian to log
# into. Whoever enters it does so in a mount namespace of his own (loadtest/src/playground/debian_tree.rs).
# Runs of it wait for each other. Needs root, because the files belong to root.
set -euo pipefail
cd "$(dirname "$0")/.."

# Longest the whole may take; on a quick network it is under a minute.
readonly TIMEOUT_SECS=${HEADSTART_DEBIAN_TIMEOUT_SECS:-600}
readonly SUITE=${1:?a Debian release: forky, trixie or bookworm}
shift

home=${HEADSTART_DEBIAN_ROOTS:-${CARGO_TARGET_DIR:-target}}/$SUITE
packages=("$@")
[ ${#packages[@]} -gt 0 ] || case $SUITE in
    forky) packages=(
        containerd runc          # 2.1: the transfer service, ranged and parallel fetches
        podman crun conmon       # registries.conf mirrors
        skopeo buildah
        crane oras               # where Debian has them
        dash coreutils mount     # a shell and cp, for people; mount, because containerd execs helpers
    ) ;;
    trixie) packages=(containerd runc dash coreutils mount) ;; # 1.7
    # What a small image and a small node have: the second has systemd as its first process.
    bookworm) packages=(dash coreutils util-linux mount ca-certificates systemd) ;;
    *) echo "debian-root: which packages of $SUITE?" >&2; exit 2 ;;
esac

# Changes with the list, so that a tree of an older list is not taken for this one.
wanted=$(printf '%s\n' "$SUITE" "${packages[@]}" | sha256sum | cut -c1-12)

mkdir -p "$home"
home=$(cd "$home" && pwd)
tree=$home/tree-$wanted
exec 9>"$home/lock"
flock -w "$TIMEOUT_SECS" 9 || { echo "debian-root: another run held the lock for $TIMEOUT_SECS s" >&2; exit 1; }
if [ -e "$tree/headstart-packages" ]; then
    echo "$tree"
    exit 0
fi
[ "$(id -u)" -eq 0 ] || { echo "debian-root: not root" >&2; exit 1; }

. ./scripts/debian-mirror.sh
from=$(mirror)
[ -n "$from" ] || { echo "debian-root: no Debian mirror in apt's sources; set HEADSTART_DEBIAN_MIRROR" >&2; exit 1; }

started=$(date +%s)
work=$(mktemp -d "$home/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{cache,lists,archives,tree,etc/sources.list.d}
mkdir -p "$work/archives/partial" "$work/lists/partial"
: >"$work/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys target=Packages] $from $SUITE main" >"$work/etc/sources.list"

# The machine's own apt (its proxy, its time-outs) over private lists: it believes that nothing is installed.
options=(
    -o "Dir::Etc::sourcelist=$work/etc/sources.list" -o "Dir::Etc::sourceparts=$work/etc/sources.list.d"
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status"
    -o "Dir::State::extended_states=$work/extended_states"
    -o "Dir::Cache::archives=$work/archives" -o "Dir::Cache=$work/cache"
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3
)
quick() { timeout "$TIMEOUT_SECS" "$@"; }

quick apt-get "${options[@]}" -qq update >&2
policy=$(apt-cache "${options[@]}" policy "${packages[@]}")
got=()
missing=()
for package in "${packages[@]}"; do
    # "NAME:", then "  Candidate: VERSION" a few lines below; names that nobody knows are not listed.
    if grep -A 2 -x "$package:" <<<"$policy" | grep 'Candidate: [^(]' >/dev/null; then
        got+=("$package")
    else
        missing+=("$package")
    fi
done
DEBIAN_FRONTEND=noninteractive quick apt-get "${options[@]}" -y -qq --no-install-recommends --download-only \
    install "${got[@]}" >"$work/apt.log" 2>&1 || { tail -n 20 "$work/apt.log" >&2; exit 1; }

for link in bin sbin lib lib64; do
    mkdir -p "$work/tree/usr/$link"
    ln -s "usr/$link" "$work/tree/$link"
done
for deb in "$work"/archives/*.deb; do
    # Documentation and translations are half of what is unpacked, and nobody reads them here.
    dpkg-deb --fsys-tarfile "$deb" |
        tar -x -C "$work/tree" --keep-directory-symlink --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
            --exclude='./usr/share/locale/*' --exclude='./usr/share/i18n/*' --exclude='./usr/share/zoneinfo/*' \
            --exclude='./usr/libexec/buildah/*' --exclude='./usr/libexec/podman/podman-testing'
done
mkdir -p "$work/tree"/{proc,sys,dev,run,tmp,var/tmp,root,etc/containers}
chmod 1777 "$work/tree/tmp" "$work/tree/var/tmp"
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/tree/etc/passwd"
echo 'root:x:0:' >"$work/tree/etc/group"
echo 'hosts: files' >"$work/tree/etc/nsswitch.conf"
echo '127.0.0.1 localhost' >"$work/tree/etc/hosts"
chroot "$work/tree" /sbin/ldconfig 2>/dev/null || true

{
    for package in "${got[@]}"; do
        deb=$(find "$work/archives" -name "${package}_*.deb" | head -n 1)
        echo "$package $([ -n "$deb" ] && dpkg-deb -f "$deb" Version)"
    done
    for package in "${missing[@]}"; do
        echo "$package missing"
    done
} >"$work/packages"
count=$(find "$work/archives" -name '*.deb' | wc -l)
# Renamed when whole, so that a killed run leaves no half tree under this name.
cp "$work/packages" "$work/tree/headstart-packages"
rm -rf "$home"/tree-*
mv "$work/tree" "$tree"
{
    echo "debian-root: $count packages, $(du -sm "$tree" | cut -f1) MiB, $(($(date +%s) - started)) s"
    [ ${#missing[@]} -eq 0 ] || echo "debian-root: $SUITE does not have: ${missing[*]}"
} >&2
echo "$tree"
