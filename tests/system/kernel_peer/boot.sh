#!/usr/bin/env bash
# boot.sh KERNEL TAP SECONDS [PROGRAM [WORDS]]: becomes a virtual machine with a real kernel's WireGuard in it, without KVM.
#
# KERNEL is an unpacked linux-image package with modules.dep made (tests/kernel.sh), TAP the device that the guest's eth0 is plugged into. The guest reads
# commands from our standard input, one a line, and what they print comes out of our standard output. Its tools are busybox, wg, PROGRAM and
# load-nftables: without that its kernel has no nftables. WORDS are added to its command line.
# It ends after SECONDS, or with this process. Nothing is left behind: the initial RAM disk has no name by the time qemu reads it.
# Needs: qemu-system-x86 busybox-static cpio kmod wireguard-tools.
set -euo pipefail
kernel=$1 tap=$2 seconds=$3
version=$(ls "$kernel/lib/modules")
root=$(mktemp -d)
trap 'rm -rf "$root" "$root".*' EXIT
mkdir -p "$root"/{bin,proc,sys,dev,run,tmp,modules}

cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
for program in "$(command -v wg)" ${4+"$4"}; do
  for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
    install -D "$(readlink -f "$file")" "$root$file"
  done
  ln -sf "$program" "$root/bin/$(basename "$program")"
done

# Unpacks modules with what they need, and prints what loads them.
insmods() {
  for module; do
    modprobe -d "$kernel" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    case $file in
      *.xz) xz -dc "$file" >"$root/modules/$(basename "$file" .xz)" ;;
      *) cp "$file" "$root/modules/" ;;
    esac
    echo "insmod /modules/$(basename "$file" .xz)"
  done
}
insmods virtio_pci virtio_net wireguard >"$root.insmod"
insmods nf_tables nft_ct nft_objref nft_chain_nat nft_masq >"$root/bin/load-nftables"
chmod +x "$root/bin/load-nftables"

{
  cat <<'BEFORE'
#!/bin/sh
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
BEFORE
  cat "$root.insmod"
  echo "(sleep $seconds; poweroff -f) &"
  cat <<'AFTER'
stty -echo
echo "guest $(uname -r) is up"
while read -r line; do
  eval "$line" </dev/null 2>&1
  echo "status $?"
done
poweroff -f
AFTER
} >"$root/init"
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$root.cpio"
exec 9<"$root.cpio"
rm -rf "$root" "$root".*

exec qemu-system-x86_64 -accel tcg -cpu max -m 512 -smp 1 -display none -monitor none -serial stdio -no-reboot \
  -kernel "$kernel/boot/vmlinuz-$version" -initrd /proc/self/fd/9 -append "console=ttyS0 panic=-1 quiet ${5-}" \
  -netdev "tap,id=net,ifname=$tap,script=no,downscript=no" -device virtio-net-pci,netdev=net
