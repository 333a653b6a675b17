# shellcheck shell=bash
# How the fuzz targets and the tests under AddressSanitizer are built. Sourced by ./run, ./asan and ./memcheck.
#
# A stable compiler does it, if its distributor shipped the sanitizer's library: RUSTC_BOOTSTRAP opens the
# one option that is not stable.

FUZZ_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PROJECT=$(cd "$FUZZ_DIR/../.." && pwd)
FUZZ_OUT=${CARGO_TARGET_DIR:-$PROJECT/target}/fuzz
HOST=$(rustc -vV 2>/dev/null | sed -n 's/^host: //p') || true
FUZZ_BUILT=$FUZZ_OUT/$HOST/release
export FUZZ_DIR FUZZ_BUILT

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

missing_for_asan() {
  local library
  if [ -z "$HOST" ]; then
    echo "no rustc here"
    return
  fi
  for library in "$(rustc --print sysroot)/lib/rustlib/$HOST/lib/"*asan*; do
    [ -e "$library" ] || echo "the compiler was shipped without AddressSanitizer's library"
  done
}

missing_for_fuzzing() {
  missing_for_asan
  command -v c++ >/dev/null || echo "no C++ compiler for libFuzzer ('apt install g++')"
}

# under_asan COMMAND…: with the flags of AddressSanitizer, and of these besides: $MORE_FLAGS.
under_asan() {
  RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address ${MORE_FLAGS:-}" CARGO_BUILD_TARGET=$HOST "$@"
}

# fuzz_cargo COMMAND [ARG…]: cargo's COMMAND for the fuzz targets.
fuzz_cargo() {
  local argument command=$1
  shift
  # what cargo-fuzz passes: counters on every edge, and what comparisons compared
  MORE_FLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1"
  for argument in level=4 inline-8bit-counters pc-table trace-compares; do
    MORE_FLAGS+=" -Cllvm-args=-sanitizer-coverage-$argument"
  done
  under_asan cargo "$command" --quiet --release --locked --manifest-path "$FUZZ_DIR/Cargo.toml" --bins \
    --target-dir "$FUZZ_OUT" "$@"
}
