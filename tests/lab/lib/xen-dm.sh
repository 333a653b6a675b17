# shellcheck shell=bash
# xen-dm itself and the crate xen's own suite, as static aarch64 programs.

# need_xen_dm: sets XEN_DM.
need_xen_dm() {
  XEN_DM=${XEN_LAB_DM:-} # another arm64 program in its place
  [ -z "$XEN_DM" ] || return 0
  need_rust_aarch64
  artefact xen-dm "$(content_key "$(rust_sources)" "$(declare -f build_xen_dm)" "${RUST_AARCH64_ENV[@]}")" \
    "two to four minutes on two cores the first time" build_xen_dm "${RUST_AARCH64_ENV[@]}"
  XEN_DM=$ARTEFACT/xen-dm
}

# check_other_program: XEN_LAB_DM has to name what dom0 can run, which would show only in its first case.
check_other_program() {
  [ -f "$XEN_LAB_DM" ] || die "XEN_LAB_DM=$XEN_LAB_DM is no file"
  [ -x "$XEN_LAB_DM" ] || die "XEN_LAB_DM=$XEN_LAB_DM is not executable"
  # ELF header: magic, 64 bit, little endian; at 18 the machine, 183 = EM_AARCH64
  [ "$(head -c 20 "$XEN_LAB_DM" | od -An -v -tx1 -w20 | tr -d ' ' | cut -c1-12,37-40)" = 7f454c460201b700 ] ||
    die "XEN_LAB_DM=$XEN_LAB_DM is no program for arm64"
}

# need_suite: sets SUITE, the test program of crate xen.
need_suite() {
  need_rust_aarch64
  artefact suite "$(content_key "$(rust_sources)" "$(declare -f build_suite)" "${RUST_AARCH64_ENV[@]}")" \
    "half a minute on two cores the first time" build_suite "${RUST_AARCH64_ENV[@]}"
  SUITE=$ARTEFACT/suite
}

# every file that can decide what cargo builds, with its content's hash
rust_sources() {
  (cd "$PROJECT" && find Cargo.toml Cargo.lock rust-toolchain* .cargo vmm devices xen swiotlb -type f 2>/dev/null |
    LC_ALL=C sort | xargs -d '\n' sha256sum)
}

# The release profile without link-time optimization, which doubles the time for nothing that emulation shows.
lab_cargo() { # lab_cargo SETTING… -- CARGO-ARGUMENT…
  local settings=()
  while [ "$1" != -- ]; do settings+=("$1") && shift; done
  shift
  (cd "$PROJECT" && env "${settings[@]}" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 cargo "$@")
}

build_xen_dm() {
  lab_cargo "$@" -- build --release -p vmm --bin xen-dm
  "${CROSS}strip" -o xen-dm "$(target_directory "$@")/release/xen-dm"
}

build_suite() {
  lab_cargo "$@" -- test --release --no-run -p xen --test suite --message-format=json >messages
  "${CROSS}strip" -o suite "$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' messages)"
  rm messages
}

target_directory() {
  local setting
  for setting; do
    case $setting in CARGO_TARGET_DIR=*) echo "${setting#*=}/$RUST_TARGET" ;; esac
  done
}
