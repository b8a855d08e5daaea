# shellcheck shell=bash
# The Go programs of the cluster, built from the modules pinned in tools/go.mod.

declare -A tool_package=(
  [etcd]=go.etcd.io/etcd/server/v3
  [coredns]=./coredns
  [pause]=./pause
  [helm]=helm.sh/helm/v4/cmd/helm
  [kind]=sigs.k8s.io/kind
)
for _tool in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl; do
  tool_package[$_tool]=k8s.io/kubernetes/cmd/$_tool
done

module_version() { awk -v m="$1" '$1 == m && $2 ~ /^v/ { print $2; exit }' "$here/tools/go.mod"; }
kubernetes_version=$(module_version k8s.io/kubernetes)

# The version is set the way the upstream builds set it: kubeadm, kind and clients read it.
tool_ldflags() {
  local v=k8s.io/component-base/version minor=${kubernetes_version#v1.}
  echo "-s -w -X $v.gitVersion=$kubernetes_version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean" \
    "-X helm.sh/helm/v4/internal/version.version=$(module_version helm.sh/helm/v4)"
}

# Everything that decides what the binaries are, and nothing else.
tools_key() {
  { cat "$here"/tools/{go.mod,go.sum,coredns/*.go,pause/*.go} && tool_ldflags && go env GOVERSION GOARCH; } | key
}

find_tools() {
  command -v go >/dev/null || die "Go is needed to build the cluster's tools, and is not in PATH"
  tools=$cache/tools/$(tools_key)
  PATH=$tools:$PATH
}

# Builds those of the named tools (all of them without a name) that the cache lacks. Each appears in one piece, by rename.
ensure_tools() { # [NAME...]
  local name missing=() packages=()
  (($#)) || set -- "${!tool_package[@]}"
  for name in "$@"; do
    [[ ${tool_package[$name]:-} ]] || die "no tool is named '$name'; there are: ${!tool_package[*]}"
    [[ -x $tools/$name ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  ( build_tools "${missing[@]}" )
}

build_tools() { # NAME...
  hold_lock "$cache/tools.lock"
  local name packages=()
  for name in "$@"; do
    [[ -x $tools/$name ]] || packages+=("${tool_package[$name]}")
  done
  ((${#packages[@]})) || return 0

  local part=$tools.part
  rm -rf "$part"
  mkdir -p "$part" "$tools" "$logs"
  say "building $* (minutes the first time; log: $logs/tools.log)"
  cd "$here/tools"
  CGO_ENABLED=0 GOWORK=off mortal nice go build -v -trimpath -buildvcs=false -ldflags "$(tool_ldflags)" -o "$part/" "${packages[@]}" \
    > >(progress tools) 2>&1 || die "the build failed: $(tail -n 5 "$logs/tools.log")"
  [[ ! -e $part/server ]] || mv "$part/server" "$part/etcd" # go names a program after its package
  mv "$part"/* "$tools/"
  rmdir "$part"
  prune "$cache/tools" "${tools##*/}"
  say "built $*"
}
