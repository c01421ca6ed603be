#!/usr/bin/env bash
# The shim as a tarball that installs itself:  ./scripts/package.sh [BINARY] [OUT.tar.gz]
# In: a built headstart-shim (default: target/release/headstart-shim). Out: headstart-shim-VERSION-ARCH.tar.gz, with
# install.sh at its top. The binary needs a C library as new as the one it was built with: build on the oldest you have.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-${CARGO_TARGET_DIR:-target}/release/headstart-shim}
[ -x "$binary" ] || { echo "package: no $binary; cargo build --release -p headstart-shim" >&2; exit 1; }
version=$("$binary" --version | cut -d' ' -f2)
name=headstart-shim-$version-$(uname -m)
out=${2:-$name.tar.gz}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top/bin" "$top/config/systemd"
cp "$binary" "$top/bin/headstart-shim"
cp packaging/install.sh LICENSE "$top/"
cp config/shim.toml config/modules-load.conf "$top/config/"
cp config/systemd/headstart-shim* "$top/config/systemd/"
cp -R config/containerd config/k3s "$top/config/"
chmod -R u=rwX,go=rX "$top"
# The same files make the same tarball.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work" -cf - "$name" | gzip -n >"$out"
echo "$out"
