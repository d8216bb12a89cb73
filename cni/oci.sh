#!/usr/bin/env bash
# oci.sh ROOT NAME OUT [PROGRAM [ARG…]]: makes an OCI archive of one layer from the folder ROOT, with nothing but tar, gzip and sha256sum.
#
# The same folder makes the same bytes: names are sorted, and times are SOURCE_DATE_EPOCH, or the epoch. `ctr images import`, `podman load`
# and `skopeo copy oci-archive:` read it.
set -euo pipefail
root=$1 name=$2 out=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac

pack() { tar --sort=name --mtime="@${SOURCE_DATE_EPOCH:-0}" --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$2" "${@:3}"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
# Puts a file among the blobs and prints what refers to it.
blob() { # FILE MEDIA-TYPE [FURTHER-FIELDS]
  local digest size
  digest=$(sum "$1") size=$(stat -c %s "$1")
  mv "$1" "$work/image/blobs/sha256/$digest"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s%s}' "$2" "$digest" "$size" "${3:-}"
}
quoted() { local separator='' word; for word; do printf '%s"%s"' "$separator" "$word"; separator=,; done; }

mkdir -p "$work/image/blobs/sha256"
pack "$root" "$work/layer.tar" .
difference=$(sum "$work/layer.tar")
gzip -n -9 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz" layer.v1.tar+gzip)
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":[%s]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$(quoted "$@")" "$difference" >"$work/config.json"
config=$(blob "$work/config.json" config.v1+json)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
  "$config" "$layer" >"$work/manifest.json"
# Containerd goes by the first of the two names, others by the second.
manifest=$(blob "$work/manifest.json" manifest.v1+json \
  ",\"annotations\":{\"io.containerd.image.name\":\"$name\",\"org.opencontainers.image.ref.name\":\"$name\"}")
printf '{"schemaVersion":2,"manifests":[%s]}' "$manifest" >"$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
pack "$work/image" "$work/out.tar" oci-layout index.json blobs
mv "$work/out.tar" "$out"
