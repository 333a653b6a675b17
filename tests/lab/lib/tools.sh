# shellcheck shell=bash
# cargo-deny, which no Debian package has: where the machine has none, one of our own is built in the cache.

DENY_VERSION=0.19.0

deny_key() { content_key "$DENY_VERSION" "$(declare -f build_cargo_deny)"; }

# find_cargo_deny: sets CARGO_DENY, if there is one already.
find_cargo_deny() {
  CARGO_DENY=$(command -v cargo-deny) || CARGO_DENY=$LAB_CACHE/cargo-deny-$(deny_key)/bin/cargo-deny
  [ -x "$CARGO_DENY" ]
}

# need_cargo_deny: builds it where there is none; its failure is told, and for the caller to judge.
need_cargo_deny() {
  find_cargo_deny || try_artefact cargo-deny "$(deny_key)" "two minutes on two cores" build_cargo_deny
}

# Not optimized and without what fetches advisories: a quarter of the time.
build_cargo_deny() {
  CARGO_TARGET_DIR=$PWD/target timeout -k 10 900 \
    cargo install --locked --debug --no-default-features --root "$PWD" "cargo-deny@$DENY_VERSION"
  rm -rf target
}
