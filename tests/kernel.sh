#!/usr/bin/env bash
# kernel.sh DIR: unpacks Debian's cloud kernel into DIR, for the tests that talk to the kernel's own WireGuard (ADIT_KERNEL=DIR).
#
# What the guest is made of otherwise: apt-get install qemu-system-x86 busybox-static cpio kmod wireguard-tools
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if compgen -G "$dir/boot/vmlinuz-*" >/dev/null; then
  exit 0
fi
name() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: //p'; }
package=$(name)
if [ -z "$package" ]; then
  apt-get -qq update
  package=$(name)
fi
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
(cd "$download" && apt-get -qq -o APT::Sandbox::User=root download "$package")
# Beside it first: a directory with a kernel in it is a whole one.
dpkg -x "$download"/*.deb "$download/kernel"
depmod -b "$download/kernel" "$(ls "$download/kernel/lib/modules")"
cp -a "$download/kernel/lib" "$dir/"
cp -a "$download/kernel/boot" "$dir/"
