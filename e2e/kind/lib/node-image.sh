# shellcheck shell=bash
# The node image for our own engine: what kind's images/base/Dockerfile and `kind build node-image` would make, from Debian's packages
# and our own builds.

node_files=("$here/lib/node-image.sh" "$here"/own/{node-rootfs,oci-image,runc-without-sys-resource} "$here"/node/*)

# Everything that decides what the image is.
node_key() { { echo "${tools##*/}" && cat "${node_files[@]}"; } | key; }

make_node_image() { # NAME
  local name=$1 work=$cache/node.part kind_files
  kind_files=$(cd "$here/tools" && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
  mkdir -p "$logs"
  rm -rf --one-file-system "$work"
  mkdir -p "$work"
  say "making the node image $name (log: $logs/node-image.log)"
  # In namespaces of its own, so that a build that is killed leaves no mount and no process.
  mortal unshare --mount --pid --fork --kill-child --mount-proc \
    "$here/own/node-rootfs" "$work" "$tools" "$kubernetes_version" "$kind_files" > >(progress node-image) 2>&1 ||
    die "the node image could not be made: $(tail -n 5 "$logs/node-image.log")"
  say "importing the node image"
  # The image gets its name last, so one that was half imported is never used.
  local files
  files=$(tar -C "$work/rootfs" -cf - . | docker import -)
  docker_build --tag "$name" --build-arg "FILES=$files" - <"$here/node/Dockerfile" >/dev/null
  rm -rf --one-file-system "$work"
}
