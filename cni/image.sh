#!/usr/bin/env bash
# image.sh [OUT]: builds adit's programs static and makes the image of them, as an OCI archive; no container engine is needed.
#
# OUT is target/image/adit.tar unless it is given. The image is localhost/adit:VERSION; ADIT_IMAGE_NAME says otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)
out=${1:-$target/image/adit.tar}

# With a target named, build scripts and macros are not static: they could not be.
export RUSTFLAGS="-C target-feature=+crt-static"
cargo build --locked --profile image --target "$host" --bin adit
cargo build --locked --profile small --target "$host" --package adit-cni
mkdir -p "$(dirname "$out")"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
install -D -m 755 "$target/$host/image/adit" "$root/usr/bin/adit"
install -m 755 "$target/$host/small/adit-cni" "$root/usr/bin/adit-cni"
# Where volumes are mounted, so that the root may be read-only.
mkdir -p "$root"/{etc,run/adit,tmp,var/lib/adit,var/run/wireguard}
cni/oci.sh "$root" "${ADIT_IMAGE_NAME:-localhost/adit:$version}" "$out" /usr/bin/adit
printf '%s: %s bytes\n' "$out" "$(stat -c %s "$out")"
