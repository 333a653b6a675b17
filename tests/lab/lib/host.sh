# shellcheck shell=bash
# What the machine itself has to have: Debian packages, installed with apt when missing and said aloud.

LAB_HOST_PACKAGES=(qemu-system-arm device-tree-compiler gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  gcc libc6-dev make cpio xz-utils kmod)
BUILD_HOST_PACKAGES=(flex bison bc) # for Xen and for the kernel
MINIMUM_CARGO=1.88                  # rust-version in Cargo.toml

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root: '$*'. Run as root, or install sudo and allow it to you."
  fi
}

apt_root() { # what apt says is shown only when it fails
  local output
  output=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
    "$@" </dev/null 2>&1) || { printf '%s\n' "$output" | tail -n 20 >&2 && return 1; }
}

# host_need PACKAGE…: installs those that are missing.
host_need() {
  local package missing=()
  command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    die "no apt here. The lab knows Debian 12; elsewhere use a Debian 12 container or virtual machine."
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing on this machine: ${missing[*]}"
  apt_root update || die "apt-get update failed; look at the machine's network and apt sources"
  apt_root install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get install ${missing[*]} failed; what apt said stands above"
  say "installed"
}

# need_lints: rustfmt and clippy, from where the machine's Rust is; where they cannot be had it is for the caller to judge.
need_lints() {
  ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 || return 0
  say "no rustfmt or no clippy on this machine"
  if command -v rustup >/dev/null; then
    (cd "$PROJECT" && timeout -k 5 300 rustup component add rustfmt clippy </dev/null >&2)
  elif dpkg-query -W rustc-web >/dev/null 2>&1; then
    host_need rustfmt-web rust-web-clippy
  fi
}

# need_cargo: a cargo that is new enough; where there is none at all, Debian's.
need_cargo() {
  local have
  if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
    say "no Rust on this machine: Debian's rustc-web is taken (of bookworm-security)"
    host_need cargo-web rustc-web gcc libc6-dev ca-certificates
  fi
  have=$(cd "$PROJECT" && cargo --version | cut -d' ' -f2)
  [ "$(printf '%s\n' "$MINIMUM_CARGO" "$have" | sort -V | head -n 1)" = "$MINIMUM_CARGO" ] ||
    die "cargo $have is too old, $MINIMUM_CARGO is needed: 'rustup update', or 'apt install cargo-web rustc-web' in its place"
}
