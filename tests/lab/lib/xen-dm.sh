# shellcheck shell=bash
# xen-dm itself and the crate xen's own suite, as static aarch64 programs.

SUITE_SOURCE=xen/tests/suite.rs

# need_xen_dm: sets XEN_DM and SUITE (empty where the project has no suite).
need_xen_dm() {
  if [ -n "${XEN_LAB_DM:-}" ]; then # another arm64 program in its place
    XEN_DM=$XEN_LAB_DM
    SUITE=
    return
  fi
  need_rust_aarch64
  artefact xen-dm "$(content_key "$(rust_sources)" "$(declare -f build_xen_dm)" "${RUST_AARCH64_ENV[@]}")" \
    "about a minute and a half on two cores the first time" build_xen_dm "${RUST_AARCH64_ENV[@]}"
  XEN_DM=$ARTEFACT/xen-dm
  SUITE=
  [ ! -d "$ARTEFACT/suite" ] || SUITE=$ARTEFACT/suite
}

# every file that can decide what cargo builds, with its content's hash
rust_sources() {
  (cd "$PROJECT" && find Cargo.toml Cargo.lock rust-toolchain* .cargo vmm devices xen swiotlb -type f 2>/dev/null |
    LC_ALL=C sort | xargs -d '\n' sha256sum)
}

build_xen_dm() {
  local out=$PWD
  cd "$PROJECT" || return
  env "$@" cargo build --release -p vmm --bin xen-dm
  cp "$(target_directory "$@")/release/xen-dm" "$out/xen-dm"
  "${CROSS}strip" "$out/xen-dm"
  if [ -e "$SUITE_SOURCE" ]; then
    env "$@" cargo test --no-run -p xen --test suite --message-format=json >"$out/messages"
    mkdir "$out/suite"
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$out/messages" | while read -r program; do
      "${CROSS}strip" -o "$out/suite/suite" "$program"
    done
    rm "$out/messages"
    [ -x "$out/suite/suite" ]
  fi
}
target_directory() {
  local setting
  for setting; do
    case $setting in CARGO_TARGET_DIR=*) echo "${setting#*=}/$RUST_TARGET" ;; esac
  done
}
