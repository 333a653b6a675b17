# shellcheck shell=bash
# Rust for aarch64: makes this machine able to build static aarch64 programs with the cargo it has.
# The first way that works is taken (RUST_AARCH64_WAYS="deb src" leaves out and orders):
#   rustup  the target's standard library from rustup's server, or one that is already there
#   deb     Debian's rustc-web with its prebuilt arm64 library, unpacked in the cache
#   src     the machine's rustc builds the library itself from Debian's rust-src of the same version

RUST_TARGET=aarch64-unknown-linux-gnu

# need_rust_aarch64: sets RUST_AARCH64_ENV, what `env` has to be given before cargo.
need_rust_aarch64() {
  local way ways=${RUST_AARCH64_WAYS:-rustup deb src} memory
  need_cargo
  host_need "${LAB_HOST_PACKAGES[@]}"
  # The way that worked last time for this compiler and these ways is not searched for again.
  memory=$LAB_CACHE/rust-aarch64-way-$(content_key "$(cd "$PROJECT" && rustc -vV)" "$ways")
  [ ! -e "$memory" ] || ways=$(cat "$memory")
  for way in $ways; do
    RUST_EXTRA=()
    case $way in
    rustup | deb | src) ;;
    *) die "RUST_AARCH64_WAYS names '$way'; the ways are rustup, deb and src" ;;
    esac
    if "rust_$way"; then
      rust_environment "$way"
      if [ -e "$memory" ] || rust_works; then
        mkdir -p "$LAB_CACHE"
        echo "$way" >"$memory"
        return
      fi
    fi
    rm -f "$memory"
    say "aarch64 Rust: not by way of '$way' on this machine"
  done
  die "no way to aarch64 Rust works here (tried: $ways). 'rustup target add $RUST_TARGET' where rustup reaches its server; otherwise look at $LAB_CACHE/logs"
}

rust_environment() {
  RUST_AARCH64_ENV=(-u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_RUSTFLAGS
    "CARGO_BUILD_TARGET=$RUST_TARGET"
    # cargo takes what another checkout of the same packages has built for its own
    "CARGO_TARGET_DIR=$LAB_CACHE/target-aarch64-$1-$(content_key "$PROJECT")"
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${CROSS}gcc"
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS=-C target-feature=+crt-static"
    "${RUST_EXTRA[@]}")
}

has_std() { # has_std RUSTC: has this compiler the target's library?
  local directory
  directory=$(cd "$PROJECT" && "$1" --print target-libdir --target "$RUST_TARGET" 2>/dev/null) || return 1
  compgen -G "$directory/libstd-*.rlib" >/dev/null
}

rust_rustup() {
  ! has_std rustc || return 0
  command -v rustup >/dev/null || return 1
  say "aarch64 Rust: rustup target add $RUST_TARGET"
  (cd "$PROJECT" && RUSTUP_MAX_RETRIES=1 timeout -k 5 120 rustup target add "$RUST_TARGET" </dev/null >&2) && has_std rustc
}

rust_deb() {
  try_artefact rust-deb "$(content_key "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$(declare -f fetch_rust_deb)")" \
    "120 MB to download" fetch_rust_deb || return 1
  local tool
  for tool in rustc rustdoc; do # outside the artefact's final name the paths are not known
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
      "'$ARTEFACT/root/usr/lib/x86_64-linux-gnu'" "'$ARTEFACT/root/usr/bin/$tool'" >"$ARTEFACT/$tool"
    chmod +x "$ARTEFACT/$tool"
  done
  "$ARTEFACT/rustc" -V >/dev/null 2>&1 || host_need libedit2 libffi8 libxml2 libz3-4 libzstd1 zlib1g
  has_std "$ARTEFACT/rustc" || return 1
  RUST_EXTRA=("RUSTC=$ARTEFACT/rustc" "RUSTDOC=$ARTEFACT/rustdoc")
}
fetch_rust_deb() {
  local release libraries
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # both architectures: the compiler of this machine, the library of the target
  apt_state rust-deb "amd64 arm64" "deb $(debian_mirror Debian-Security) $release-security main"
  # the compiler's own library and LLVM carry versions in their names
  libraries=$(apt_in rust-deb apt-cache depends --recurse --no-recommends --no-suggests rustc-web:amd64 |
    grep -xE '(libstd-rust-web-[0-9.]+|libllvm[0-9]+)' | sort -u | sed 's/$/:amd64/')
  # shellcheck disable=SC2086 # one word a package
  fetch_packages rust-deb root rustc-web:amd64 $libraries libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64
  rm -rf root/usr/share/doc root/usr/share/man
}

rust_src() {
  local version
  version=$(cd "$PROJECT" && rustc -V | cut -d' ' -f2)
  try_artefact rust-src "$(content_key "$version" "$(declare -f fetch_rust_src)")" "" fetch_rust_src "$version" || return 1
  [ -e "$ARTEFACT/library/std/Cargo.toml" ] || return 1
  # -Zbuild-std is unstable: the compiler has to be told that it may, and where the source is.
  RUST_EXTRA=(RUSTC_BOOTSTRAP=1 "CARGO_UNSTABLE_BUILD_STD=std,panic_unwind" "__CARGO_TESTS_ONLY_SRC_ROOT=$ARTEFACT/library")
}
fetch_rust_src() {
  local suite package='' mirror
  mirror=$(debian_mirror Debian)
  for suite in trixie-backports trixie sid; do
    apt_state rust-src amd64 "deb $mirror $suite main" || continue
    package=$(apt_in rust-src apt-cache madison rust-src |
      awk -v v="$1" 'index($3, v "+") == 1 || index($3, v "-") == 1 { print $1 "=" $3; exit }')
    [ -z "$package" ] || break
  done
  # No such version at the mirror is an answer, not an error: the artefact stays empty.
  [ -n "$package" ] || { echo "no rust-src $1 at the mirror" && return; }
  fetch_packages rust-src root "$package"
  mv "root/usr/src/rustc-$1/library" library
  rm -rf root
}

rust_works() { # does this environment build a static aarch64 program?
  local check=$LAB_CACHE/rust-check-$$ binary status=0
  mkdir -p "$check/src"
  CLEAN_DIRS+=("$check")
  printf '[package]\nname = "check"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$check/Cargo.toml"
  echo 'fn main() { std::thread::spawn(|| println!("std works")).join().unwrap() }' >"$check/src/main.rs"
  (cd "$check" && env "${RUST_AARCH64_ENV[@]}" "CARGO_TARGET_DIR=$check/target" cargo build -q) >&2 || status=1
  binary=$check/target/$RUST_TARGET/debug/check
  [ "$status" = 0 ] && "${CROSS}readelf" -h "$binary" | grep -q AArch64 &&
    ! "${CROSS}readelf" -l "$binary" | grep -q INTERP || status=1
  rm -rf "$check"
  return "$status"
}
