# shellcheck shell=bash
# HAProxy Ingress, built from its Go module. Its Kubernetes modules are older than the tools', so it is built by its own go.mod and
# go.sum, which are part of what the sum below is of: with it, every dependency is pinned.

haproxy_ingress_module=github.com/jcmoraisjr/haproxy-ingress
haproxy_ingress_version=v0.16.1
haproxy_ingress_sum=h1:linvIu4jbh0EaINKTclzjbosJfzyCLpMg5A4OMO0ZKA=

# Builds it unless the cache has this version. The folder has the program and beside it rootfs/, with the templates that it looks for
# in its working directory. It appears in one piece, by rename.
ensure_haproxy_ingress() {
  haproxy_ingress=$cache/haproxy-ingress/$haproxy_ingress_version
  [[ ! -x $haproxy_ingress/haproxy-ingress ]] || return 0
  ( build_haproxy_ingress )
}

build_haproxy_ingress() {
  hold_lock "$cache/haproxy-ingress.lock"
  [[ ! -x $haproxy_ingress/haproxy-ingress ]] || return 0
  local source part=$haproxy_ingress.part module=$haproxy_ingress_module@$haproxy_ingress_version
  source=$(cd / && go mod download -json "$module")
  grep -qF "\"Sum\": \"$haproxy_ingress_sum\"" <<<"$source" || die "$module is not what it was: $source"
  source=$(sed -n 's/^\s*"Dir": "\(.*\)",$/\1/p' <<<"$source")

  rm -rf --one-file-system "$part"
  mkdir -p "$part" "$logs"
  say "building HAProxy Ingress $haproxy_ingress_version (minutes; log: $logs/haproxy-ingress.log)"
  cd "$source"
  CGO_ENABLED=0 GOWORK=off mortal nice go build -v -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" -o "$part/haproxy-ingress" ./pkg \
    > >(progress haproxy-ingress) 2>&1 || die "the build failed: $(tail -n 5 "$logs/haproxy-ingress.log")"
  # A module's files are read-only, and its archive drops the permission to run scripts.
  cp -r --no-preserve=mode rootfs "$part/"
  find "$part/rootfs" -name '*.sh' -exec chmod 755 {} +
  mv "$part" "$haproxy_ingress"
  prune "$cache/haproxy-ingress" "$haproxy_ingress_version"
  say "built HAProxy Ingress"
}
