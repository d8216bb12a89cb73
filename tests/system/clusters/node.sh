#!/bin/sh
# node.sh DIR NAME ADDRESS PODS GROUP [TAINT]: what a node of a test's cluster boots: containerd, kube-proxy and kubelet, in a mount and a process namespace of
# its own, so that all that runs there and all that is mounted is gone with its first process. DIR holds kubeconfig and the images; GROUP is the
# control group that all is in; the node registers itself with the taint, KEY:EFFECT.
#
# The network namespace is the caller's. Folders that pods mount from the host are the node's own.
set -eu
dir=$1 name=$2 address=$3 pods=$4 group=$5 taint=${6-} bin=$KUBEBUILDER_ASSETS

mount --make-rprivate /
mount --make-rshared /
plugins=$(readlink -f /usr/lib/cni)
mkdir -p /etc/cni /opt "$dir/logs" "$dir/kubelet" "$dir/containerd" "$dir/lib"
for folder in /run /etc/cni /opt; do mount -t tmpfs none $folder; done
mkdir -p /run/netns /run/containerd /etc/cni/net.d /opt/cni/bin /var/lib/adit
mount --bind "$dir/lib" /var/lib/adit
ln -s "$plugins"/* /opt/cni/bin/
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir -p "/sys/fs/cgroup/$group"
  for controller in cpuset cpu io memory pids; do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true; done
else
  for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller/$group" 2>/dev/null || true; done
  # A group has no CPUs and no memory until it is given them.
  for file in cpuset.cpus cpuset.mems; do
    if [ -e /sys/fs/cgroup/cpuset/$file ]; then cat /sys/fs/cgroup/cpuset/$file >"/sys/fs/cgroup/cpuset/$group/$file"; fi
  done
fi

if [ -n "$pods" ]; then
  cat >/etc/cni/net.d/10-pods.conflist <<CNI
{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,
 "ipam":{"type":"host-local","ranges":[[{"subnet":"$pods"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
CNI
fi
cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/busybox:1"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
TOML
containerd --config "$dir/containerd.toml" >"$dir/logs/containerd" 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$dir"/*.tar; do ctr -n k8s.io images import "$image" >/dev/null; done

cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$group
failSwapOn: false
localStorageCapacityIsolation: false
address: $address
healthzBindAddress: $address
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
podLogsDir: "$dir/logs/pods"
resolvConf: ""
evictionHard: {memory.available: "50Mi", nodefs.available: "1%", imagefs.available: "1%"}
# What is killed again and again comes back at once, to be killed at more moments, and not after minutes.
featureGates: {KubeletCrashLoopBackOffMax: true}
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
YAML
"$bin/kube-proxy" --kubeconfig="$dir/proxy.conf" --hostname-override="$name" --proxy-mode=nftables --cluster-cidr=10.244.0.0/16 \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s \
  --healthz-bind-address="$address:10256" --metrics-bind-address="$address:10249" >"$dir/logs/kube-proxy" 2>&1 &
exec "$bin/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.conf" --root-dir="$dir/kubelet" \
  --cert-dir="$dir/kubelet/pki" --hostname-override="$name" --node-ip="$address" ${taint:+--register-with-taints="${taint%:*}=:${taint#*:}"} >"$dir/logs/kubelet" 2>&1
