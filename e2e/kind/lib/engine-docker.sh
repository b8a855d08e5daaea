# shellcheck shell=bash
# The host's own Docker, with kind's upstream node image.

# The default of the kind release in tools/go.mod (its pkg/apis/config/defaults/image.go).
upstream_node_image=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5

# A volume without content is the claim on this engine: made in one step, and it carries the owner's name.
docker_claim=countersign-kind

docker_obstacle() {
  if ! command -v docker >/dev/null; then echo "there is no docker command"
  elif ! timeout 10 docker info >/dev/null 2>&1; then echo "no Docker engine answers"
  elif ! docker image inspect "$upstream_node_image" >/dev/null 2>&1 && ! timeout 300 docker pull --quiet "$upstream_node_image" >/dev/null 2>&1; then
    echo "the image ${upstream_node_image%@*} is neither here nor can it be pulled"
  fi
}

docker_lock() { hold_lock "$target/lock"; }

docker_owner() { timeout 10 docker volume inspect --format '{{index .Labels "countersign.dev/checkout"}}' "$docker_claim" 2>/dev/null; }

docker_alive() { timeout 10 docker container inspect "$node" >/dev/null 2>&1; }

docker_abandoned() { false; } # a claim without a node may be an `up` at its beginning

docker_connect() { :; }

docker_start() {
  ensure_tools kind kubectl
  node_image=$upstream_node_image
  docker volume create --label "countersign.dev/checkout=$checkout" "$docker_claim" >/dev/null
  [[ $(docker_owner) == "$checkout" ]] || die "another checkout was faster: $(docker_owner)"
}

docker_kind_config() { :; }

docker_stop() {
  local leftover
  mapfile -t leftover < <(docker ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$cluster")
  ((${#leftover[@]} == 0)) || docker rm --force --volumes "${leftover[@]}" >/dev/null
  ! docker network inspect "$KIND_EXPERIMENTAL_DOCKER_NETWORK" >/dev/null 2>&1 || docker network rm "$KIND_EXPERIMENTAL_DOCKER_NETWORK" >/dev/null
  docker volume rm --force "$docker_claim" >/dev/null
}
