# shellcheck shell=bash
# Data planes that are built from their Go modules. Their Kubernetes modules are older than the tools', so each is built by its own go.mod
# and go.sum, which are part of what its sum is of: with it, every dependency is pinned.

haproxy_ingress_module=github.com/jcmoraisjr/haproxy-ingress
haproxy_ingress_version=v0.16.1
haproxy_ingress_sum=h1:linvIu4jbh0EaINKTclzjbosJfzyCLpMg5A4OMO0ZKA=

contour_module=github.com/projectcontour/contour
contour_version=v1.33.8
contour_sum=h1:QoOfwqWws+CVRFpsRC2+f1DmB5IdurtyUtepIsiWfE0=

envoy_gateway_module=github.com/envoyproxy/gateway
envoy_gateway_version=v1.9.1
envoy_gateway_sum=h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY=

# Of these there are kinds alone. Traefik's module has them as documentation; its newest release is a little older than that of the program.
traefik_module=github.com/traefik/traefik/v3
traefik_module_version=v3.7.13
traefik_module_sum=h1:T8wy9KuaFzCkmXCqAzDy7t73pBDR1DHrJe3pqXpNXTw=

istio_module=istio.io/api
istio_version=v1.32.0
istio_sum=h1:37mJvg9I0biYZAEQF+MATs4FNeCpXEIVO3LFpVb6iNM=

# Builds it unless the cache has this version. The folder has the program and beside it rootfs/, with the templates that it looks for
# in its working directory. It appears in one piece, by rename.
ensure_haproxy_ingress() {
  haproxy_ingress=$cache/haproxy-ingress/$haproxy_ingress_version
  [[ -x $haproxy_ingress/haproxy-ingress ]] || ( build_haproxy_ingress )
}

build_haproxy_ingress() {
  hold_lock "$cache/haproxy-ingress.lock"
  [[ ! -x $haproxy_ingress/haproxy-ingress ]] || return 0
  local part=$haproxy_ingress.part
  build_module "$haproxy_ingress_module" "$haproxy_ingress_version" "$haproxy_ingress_sum" ./pkg "$part/haproxy-ingress"
  # A module's files are read-only, and its archive drops the permission to run scripts.
  cp -r --no-preserve=mode rootfs "$part/"
  find "$part/rootfs" -name '*.sh' -exec chmod 755 {} +
  mv "$part" "$haproxy_ingress"
  prune "$cache/haproxy-ingress" "$haproxy_ingress_version"
}

# The same of Contour, with crds.yaml beside it. What serves its users is an Envoy: see wheels.sh.
ensure_contour() {
  contour=$cache/contour/$contour_version
  [[ -x $contour/contour ]] || ( build_contour )
}

build_contour() {
  hold_lock "$cache/contour.lock"
  [[ ! -x $contour/contour ]] || return 0
  local part=$contour.part
  build_module "$contour_module" "$contour_version" "$contour_sum" ./cmd/contour "$part/contour"
  install -m 644 examples/contour/01-crds.yaml "$part/crds.yaml"
  mv "$part" "$contour"
  prune "$cache/contour" "$contour_version"
}

# The same of Envoy Gateway, with crds.yaml beside it: those of the Gateway API that it comes with, and its own. They lie in a chart that
# has nothing to fill in but the lines by which a file is left out.
ensure_envoy_gateway() {
  envoy_gateway=$cache/envoy-gateway/$envoy_gateway_version
  [[ -x $envoy_gateway/envoy-gateway ]] || ( build_envoy_gateway )
}

build_envoy_gateway() {
  hold_lock "$cache/envoy-gateway.lock"
  [[ ! -x $envoy_gateway/envoy-gateway ]] || return 0
  local part=$envoy_gateway.part
  build_module "$envoy_gateway_module" "$envoy_gateway_version" "$envoy_gateway_sum" ./cmd/envoy-gateway "$part/envoy-gateway"
  sed '/^{{.*}}$/d' charts/gateway-crds-helm/templates/{standard-gatewayapi-crds.yaml,generated/*.yaml} >"$part/crds.yaml"
  mv "$part" "$envoy_gateway"
  prune "$cache/envoy-gateway" "$envoy_gateway_version"
}

# Prints the folder of a data plane's source, whose manifests are those of its release.
source_of() { # NAME
  case $1 in
    contour) module_source "$contour_module" "$contour_version" "$contour_sum" ;;
    envoy-gateway) module_source "$envoy_gateway_module" "$envoy_gateway_version" "$envoy_gateway_sum" ;;
    istio) module_source "$istio_module" "$istio_version" "$istio_sum" ;;
    traefik) module_source "$traefik_module" "$traefik_module_version" "$traefik_module_sum" ;;
    *) die "no source of '$1' is asked for" ;;
  esac
}

module_source() { # MODULE VERSION SUM
  local found
  found=$(cd / && go mod download -json "$1@$2")
  grep -qF "\"Sum\": \"$3\"" <<<"$found" || die "$1@$2 is not what it was: $found"
  sed -n 's/^\s*"Dir": "\(.*\)",$/\1/p' <<<"$found"
}

# Builds a package of a module, and stays in the folder of its source.
build_module() { # MODULE VERSION SUM PACKAGE PROGRAM
  local source part=${5%/*} name=${5##*/}
  source=$(module_source "$1" "$2" "$3")
  rm -rf --one-file-system "$part"
  mkdir -p "$part" "$logs"
  say "building $name $2 (minutes; log: $logs/$name.log)"
  cd "$source"
  CGO_ENABLED=0 GOWORK=off mortal nice go build -v -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" -o "$5" "$4" \
    > >(progress "$name") 2>&1 || die "the build failed: $(tail -n 5 "$logs/$name.log")"
  say "built $name"
}
