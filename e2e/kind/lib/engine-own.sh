# shellcheck shell=bash
# The engine we bring along: Debian's dockerd in PID, mount and network namespaces of its own, so that it can neither disturb nor be
# disturbed by what else runs on the machine, and ends without a trace. It needs root, Debian and its packages, and no image registry.

own_state=/run/countersign/kind # of the whole machine: one cluster at a time

own_command=(docker dockerd containerd debootstrap runc jq iptables nft conntrack ip flock setpriv unshare pgrep python3)
own_package=(docker.io containerd debootstrap runc jq iptables nftables conntrack iproute2 util-linux procps python3)

# Says why this host can't run it; nothing where it can.
own_obstacle() {
  local id=none
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || id=$(. /etc/os-release && echo "${ID:-none}")
  if ((EUID != 0)); then echo "it needs root"
  elif [[ $(uname -m) != x86_64 ]]; then echo "it is made for x86_64, and this is $(uname -m)"
  elif [[ $id != debian ]] || ! command -v apt-get >/dev/null; then echo "it is made from Debian's packages, and this host is not Debian"
  elif ! grep -q ' /sys/fs/cgroup' /proc/mounts; then echo "no cgroup hierarchy is mounted at /sys/fs/cgroup"
  elif ! unshare --mount --pid --net --fork true 2>/dev/null; then echo "this host does not let root make namespaces"
  fi
}

own_install() {
  local command missing=()
  for command in "${own_command[@]}"; do
    command -v "$command" >/dev/null || missing+=("$command")
  done
  ((${#missing[@]})) || return 0
  say "installing Debian packages for: ${missing[*]}"
  mkdir -p "$logs"
  # Debian's way to keep a package from starting its service: the only engine here is to be ours.
  local policy=/usr/sbin/policy-rc.d made=''
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=$policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "${own_package[@]}" >"$logs/apt.log" 2>&1 ||
    { apt-get update && apt-get install -y --no-install-recommends "${own_package[@]}"; } >>"$logs/apt.log" 2>&1 ||
    { rm -f "$made"; die "apt-get failed; its log: $logs/apt.log"; }
  [[ ! $made ]] || rm -f "$made"
}

own_lock() { hold_lock /run/countersign/kind.lock; }

own_owner() { cat "$own_state/owner" 2>/dev/null; }

# The engine holds this lock from its first process on, and the kernel lets go of it when the last one ends, however it ends.
own_alive() { [[ -e $own_state/engine.lock ]] && ! flock -n "$own_state/engine.lock" true; }

own_abandoned() { ! own_alive; }

own_connect() { export DOCKER_HOST=unix://$own_state/docker.sock; }

own_start() {
  own_install
  ensure_tools etcd coredns pause kind kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl
  mkdir -p "$own_state"
  printf '%s\n' "$checkout" >"$own_state/owner"
  add_dead_bridge

  node_image=countersign-node:$(node_key)
  local data=$cache/engine/${node_image#*:}
  mkdir -p "$data" "$logs"
  touch "$data"
  say "starting the engine (log: $logs/engine.log)"
  (
    exec {lock}>"$own_state/engine.lock"
    flock -n "$lock"
    echo "$BASHPID" >"$own_state/engine.pid"
    # A session of its own: an interrupt at the terminal is for the command, not for the engine.
    exec setsid unshare --mount --pid --fork --kill-child --mount-proc \
      "$here/own/engine" "$own_state" "$data" "${node_ports[@]}" "$api_port"
  ) </dev/null >"$logs/engine.log" 2>&1 {held_lock}>&- &
  own_connect
  local deadline=$((SECONDS + 60))
  until docker info >/dev/null 2>&1; do
    ((SECONDS < deadline)) && kill -0 $! 2>/dev/null || die "the engine did not start: $(tail -n 3 "$logs/engine.log")"
    sleep 0.2
  done
  own_remove_containers >/dev/null # of an engine that was killed

  if ! docker image inspect "$node_image" >/dev/null 2>&1; then
    make_node_image "$node_image"
  fi
  prune "$cache/engine" "${data##*/}"
}

own_kind_config() {
  # No pod network comes with kind: the node image has its own. The kubelet settings are for hosts with version 1 of cgroups, without
  # project quotas, and without the right to lower an OOM score.
  cat <<YAML
  disableDefaultCNI: true
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false
  localStorageCapacityIsolation: false
  oomScoreAdj: 0
  resolvConf: /kind/resolv.conf
YAML
}

own_remove_containers() {
  local docker=(timeout 60 docker) containers
  mapfile -t containers < <("${docker[@]}" ps --all --quiet)
  ((${#containers[@]} == 0)) || "${docker[@]}" rm --force --volumes "${containers[@]}" || return
  "${docker[@]}" network prune --force && "${docker[@]}" volume prune --force && "${docker[@]}" image prune --force
}

# Everything that `up` made outside the cache, whatever state it is in.
own_stop() {
  if own_alive; then
    own_connect
    # Asked first, so that the containers' disk space is given back. Where that fails, they end with the engine all the same.
    own_remove_containers >/dev/null 2>&1 || say "the engine does not remove its containers: the next one will"
    own_end_engine
  fi
  own_remove_cgroups
  remove_dead_bridge
  rm -rf --one-file-system "$own_state"
}

own_end_engine() {
  local pid deadline=$((SECONDS + 20))
  pid=$(<"$own_state/engine.pid")
  pkill -TERM --parent "$pid" || true # the first process in the namespace: it ends dockerd, then itself
  while own_alive && ((SECONDS < deadline)); do sleep 0.1; done
  own_alive || return 0
  say "the engine does not end when asked: killing it"
  kill -KILL "$pid"
  while own_alive; do sleep 0.1; done
}

own_remove_cgroups() {
  local group tries
  for group in /sys/fs/cgroup/countersign-kind /sys/fs/cgroup/*/countersign-kind; do
    [[ -d $group ]] || continue
    # A killed process leaves its group a moment after it is gone.
    for ((tries = 0; tries < 50; tries++)); do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
    [[ ! -d $group ]] || die "the cgroup $group can't be removed: $(cat "$group"/cgroup.procs)"
  done
}

# The host's own packets to the cluster's ranges go to a bridge without ports instead of the default route. (Those of the cluster are
# in a network namespace that has no way out.) A range that the host already routes somewhere is in use by someone else: left alone.
add_dead_bridge() {
  local range
  has_dead_bridge || ip link add "$dead_bridge" type bridge
  ip link set "$dead_bridge" up
  for range in "$service_range" "$pod_range"; do
    case $(ip route show exact "$range") in
      '') ip route add "$range" dev "$dead_bridge" ;;
      *"dev $dead_bridge"*) ;;
      *) say "this host routes $range already: left as it is" ;;
    esac
  done
}

has_dead_bridge() { ip link show dev "$dead_bridge" >/dev/null 2>&1; }

remove_dead_bridge() { ! has_dead_bridge || ip link del "$dead_bridge"; }
