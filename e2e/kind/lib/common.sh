# shellcheck shell=bash
# What every part shares: where things are, how to speak, how to fail. Sourced by ../cluster.

checkout=$(cd "$here/../.." && pwd)
cache=$(realpath -m "${COUNTERSIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/countersign}")
target=$checkout/target/kind
logs=$target/logs
kubeconfig=$target/kubeconfig
cluster=countersign
node=$cluster-control-plane

# The ports of the cluster, all of them on 127.0.0.1: node ports (Traefik's HTTPS and HTTP, then HTTPS of HAProxy Ingress, Contour and
# Envoy Gateway), and the API server.
node_ports=(30443 30080 30444 30445 30446) api_port=36443

# Ranges of the cluster. Nothing meant for them may leave the machine: see dead_bridge.
service_range=10.96.0.0/16 pod_range=10.244.0.0/16
dead_bridge=countersign0

# kind's network in Docker, under a name of our own so that `down` can remove it without touching another cluster's.
export KIND_EXPERIMENTAL_DOCKER_NETWORK=$cluster

say() { printf '%4ds  %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Standard input goes to a log; its newest line is shown every ten seconds as a sign of life.
# Used as `command > >(progress NAME) 2>&1`, so that the command stays a child of this shell.
progress() {
  local line next=$((SECONDS + 10))
  while IFS= read -r line; do
    printf '%s\n' "$line"
    if ((SECONDS >= next)); then
      say "  ... ${line:0:100}"
      next=$((SECONDS + 10))
    fi
  done >"$logs/$1.log"
}

# A child that ends when this shell is killed: an orphan would go on working on a cluster that the next `up` has replaced.
mortal() { setpriv --pdeathsig KILL "$@"; }

# The classic builder needs nothing but the engine. That it is an old one, and where to find the new one, is no news.
docker_build() {
  DOCKER_BUILDKIT=0 docker build --quiet "$@" 2> >(grep -v -e DEPRECATED -e BuildKit -e buildx -e environment-variable -e '^ *$' >&2)
}

# The first 16 hex digits of the SHA-256 of standard input: what a cache entry is named by.
key() { sha256sum | cut -c1-16; }

# Holds a lock until this shell ends; a second one waits and says for what.
hold_lock() { # FILE
  mkdir -p "${1%/*}"
  exec {held_lock}>"$1"
  flock -n "$held_lock" && return
  say "waiting for another run to end (it holds $1)"
  flock "$held_lock"
}

# Of the cache entries in a folder, keeps the one named and the newest other one.
prune() { # FOLDER KEEP
  local old
  find "$1" -mindepth 1 -maxdepth 1 ! -name "$2" -printf '%T@ %p\n' | sort -rn | tail -n +2 | cut -d' ' -f2- |
    while IFS= read -r old; do
      say "removing ${old##*/} from the cache: neither current nor the one before"
      rm -rf --one-file-system "$old"
    done
}
