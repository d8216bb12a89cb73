#!/usr/bin/env bash
# systemd.sh [ADIT]: boots Debian in a virtual machine and runs the units of systemd/ there, as docs/two-hosts.md does, with ADIT for a program
# (default target/debug/adit). It is for a hand and not for the suite: several minutes without KVM, and a system that is downloaded.
#
# Each check prints a line; the exit status is 0 if all have passed. Needs root, and: debootstrap qemu-system-x86 busybox-static cpio kmod e2fsprogs.
#   ADIT_KERNEL   the kernel that tests/kernel.sh has unpacked (default ~/.cache/adit/kernel)
#   ADIT_SYSTEM   where the system is kept for the next time (default ~/.cache/adit/system)
set -euo pipefail
cd "$(dirname "$0")/.."
adit=${1:-target/debug/adit}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/adit
kernel=${ADIT_KERNEL:-$cache/kernel} system=${ADIT_SYSTEM:-$cache/system}
version=$(ls "$kernel/lib/modules")
if [ ! -e "$system/etc/os-release" ]; then
  debootstrap --variant=minbase --include=systemd-sysv,udev,kmod,iproute2,nftables,man-db trixie "$system"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The system with what is to be tried, as a disk.
cp -a "$system" "$work/system"
root=$work/system
install -D -m 755 "$adit" "$root/usr/local/bin/adit"
"$adit" man "$root/usr/local/share/man/man1"
cp systemd/*.service "$root/etc/systemd/system/"
mkdir -p "$root/usr/lib/modules" "$root/etc/adit/objects"
cp -a "$kernel/lib/modules/$version" "$root/usr/lib/modules/"
echo NODE_NAME=alpha >"$root/etc/adit/agent.env"
cat >"$root/etc/adit/objects/config.yaml" <<'YAML'
apiVersion: adit.dev/v1alpha1
kind: TunnelConfig
metadata: {name: default}
spec: {mode: Strict, clusterCIDRs: [10.1.0.0/24, 10.2.0.0/24]}
YAML
cat >"$root/check" <<'GUEST'
#!/bin/bash
exec >/dev/ttyS0 2>&1
check() { if eval "$2"; then echo "ok: $1"; else echo "FAILED: $1"; systemctl status --no-pager -l adit@adit0 adit-agent; fi; }
within() { for _ in $(seq "$1"); do eval "$2" && return; sleep 1; done; return 1; }
pid() { systemctl show -p MainPID --value "$1"; }
in_step() { adit status | grep -q 'interface up, routes and rules in place, firewall in place'; }
ip link add out0 type dummy && ip addr add 203.0.113.1/24 dev out0 && ip link set out0 up
key=$(adit agent --public-key)
for node in "alpha 1 $key" "beta 2 $(head -c 32 /dev/urandom | base64)"; do
  set -- $node
  printf '{apiVersion: adit.dev/v1alpha1, kind: NodeTunnel, metadata: {name: %s}, spec: {keys: [{publicKey: "%s", state: Active}],\n' "$1" "$3"
  printf 'endpoints: [{address: 203.0.113.%s, port: 51820}], podPrefixes: [10.%s.0.0/24], nodeAddresses: [203.0.113.%s]}}\n' "$2" "$2" "$2"
done >/etc/adit/objects/nodes.yaml
sed -i '3i ---' /etc/adit/objects/nodes.yaml

check 'systemd finds no fault in the units' 'systemd-analyze verify adit@adit0.service adit-agent.service'
check 'both start and tell that they are ready' 'systemctl enable --now adit@adit0 adit-agent'
check 'both are active' 'systemctl is-active adit@adit0 adit-agent'
check 'interface, routes, rules and firewall are there' 'within 60 in_step'
agent=$(pid adit-agent) data_plane=$(pid adit@adit0)
check 'the data plane is started anew without the agent' \
  'systemctl restart adit@adit0 && [ $(pid adit-agent) = $agent ] && [ $(pid adit@adit0) != $data_plane ] && within 60 in_step'
data_plane=$(pid adit@adit0)
check 'the agent is started anew without the data plane' \
  'systemctl restart adit-agent && [ $(pid adit@adit0) = $data_plane ] && [ $(pid adit-agent) != $agent ] && within 60 in_step'
agent=$(pid adit-agent)
kill -KILL "$agent" "$data_plane"
check 'what is killed is started again' \
  'within 30 "systemctl is-active -q adit@adit0 adit-agent && [ \$(pid adit-agent) != $agent ] && [ \$(pid adit@adit0) != $data_plane ]" && within 60 in_step'
data_plane=$(pid adit@adit0)
kill -STOP "$data_plane"
check 'what hangs is ended by the watchdog and started again' \
  'within 60 "[ \$(pid adit@adit0) != $data_plane ] && systemctl is-active -q adit@adit0" && within 60 in_step'
check 'the journal has lines and no colours' 'journalctl -u adit@adit0 -u adit-agent | grep -q "data plane is in step" && ! journalctl -o cat -u adit-agent | grep -qP "\x1b"'
for unit in adit@adit0 adit-agent; do
  check "little of the system is open to $unit" "systemd-analyze security --no-pager --threshold=25 $unit.service | tail -n 1"
done
check 'both stop' 'systemctl disable --now adit-agent adit@adit0 && ! systemctl is-active adit@adit0 adit-agent'
check 'in mode Strict the way stays closed' 'ip rule | grep -q 8365 && nft list table inet adit >/dev/null'
check 'all is taken away' 'adit agent --cleanup && ! ip rule | grep 8365 && ! nft list tables | grep adit && ! ip link show adit0 && ! ls /run/wireguard/*'
check 'no process is left' '! grep -l adit /proc/[0-9]*/comm'
echo 'that was all'
systemctl poweroff -ff
GUEST
chmod +x "$root/check"
cat >"$root/etc/systemd/system/check.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/check
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../check.service "$root/etc/systemd/system/multi-user.target.wants/"
truncate -s 1500M "$work/disk"
mke2fs -q -t ext4 -d "$root" "$work/disk"

# What mounts it.
first=$work/first
mkdir -p "$first"/{bin,proc,sys,dev,disk,modules}
cp "$(command -v busybox)" "$first/bin/busybox"
{
  echo '#!/bin/busybox sh'
  echo 'export PATH=/bin; for name in mount insmod switch_root; do busybox ln -s busybox /bin/$name; done; mount -t devtmpfs dev /dev'
  for module in virtio_pci virtio_blk ext4; do modprobe -d "$kernel" -S "$version" --show-depends "$module"; done |
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
      name=$(basename "$file" .xz)
      case $file in *.xz) xz -dc "$file" >"$first/modules/$name" ;; *) cp "$file" "$first/modules/" ;; esac
      echo "insmod /modules/$name"
    done
  echo 'mount -t ext4 /dev/vda /disk && exec switch_root /disk /sbin/init'
} >"$first/init"
chmod +x "$first/init"
(cd "$first" && find . | cpio -o -H newc --quiet) >"$work/initrd"

timeout 580 qemu-system-x86_64 -accel tcg -cpu max -m 1024 -smp 2 -display none -monitor none -serial stdio -no-reboot -nic none \
  -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd" -append "console=ttyS0 panic=-1 quiet systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service" \
  -drive file="$work/disk",if=virtio,format=raw </dev/null | tee "$work/log"
grep -q 'that was all' "$work/log" && ! grep -q FAILED "$work/log"
