# shellcheck shell=bash
# Messages, the cache of built artefacts, and the clean-up that runs however the lab ends.
# Sourced by every script of the lab; runs nothing by itself.

LAB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PROJECT=$(cd "$LAB_DIR/../.." && pwd)
LAB_RESOURCES=$PROJECT/resources/lab
LAB_CACHE=$(realpath -m "${XEN_LAB_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/xen-dm-lab}")
CROSS=aarch64-linux-gnu-
export LAB_DIR PROJECT LAB_RESOURCES LAB_CACHE CROSS

SECONDS=0
say() { printf '[%3d s] %s\n' "$SECONDS" "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# What has to be ended or removed when the lab leaves: process groups, processes, directories.
# The lab is one shell (no artefact is built in a command substitution), so one trap knows them all.
CLEAN_GROUPS=()
CLEAN_PIDS=()
CLEAN_DIRS=()
clean_up() {
  local status=$? id
  trap - EXIT INT TERM HUP
  for id in "${CLEAN_GROUPS[@]}"; do kill -TERM -- "-$id" 2>/dev/null || true; done
  for id in "${CLEAN_PIDS[@]}"; do kill -KILL "$id" 2>/dev/null && wait "$id" 2>/dev/null || true; done
  for id in "${CLEAN_DIRS[@]}"; do rm -rf "$id"; done
  exit "$status"
}
clean_up_on_exit() {
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

temporary_directory() { # sets TEMPORARY to a new directory, removed at the end
  TEMPORARY=$(mktemp -d "${TMPDIR:-/tmp}/xen-dm-lab.XXXXXX")
  CLEAN_DIRS+=("$TEMPORARY")
}

# content_key TEXT… : a short hash. Recipes pass what decides the result: their own text
# (`declare -f`, so a comment does not cause a rebuild), configuration without its comments, versions.
content_key() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }
without_comments() { # of Kconfig fragments, where "# CONFIG_X is not set" is no comment
  grep -Ev '^[[:space:]]*$|^#($|[^#])' "$@" || true
  grep -E '^# CONFIG_[A-Z0-9_]+ is not set$' "$@" || true
}

# artefact NAME KEY HINT RECIPE [ARG…]: sets ARTEFACT to the directory that `RECIPE ARG…` filled.
# The recipe runs in a shell of its own with errexit, in a new directory that gets its final name
# only when the recipe succeeded, so a half-built artefact is never taken for a whole one.
# HINT says what is to be expected ("about 30 s"). Output goes to a log that is shown on failure.
artefact() {
  try_artefact "$@" || die "$1 could not be built; the whole log is $LAB_CACHE/logs/$1.log"
}
try_artefact() { # the same, but where there is another way a failure is only told
  local name=$1 key=$2 hint=$3 log new lock started=$SECONDS beat
  shift 3
  ARTEFACT=$LAB_CACHE/$name-$key
  if [ -e "$ARTEFACT/.complete" ]; then
    touch "$ARTEFACT/.complete"
    return
  fi
  mkdir -p "$LAB_CACHE/logs"
  log=$LAB_CACHE/logs/$name.log
  exec {lock}>"$LAB_CACHE/$name.lock"
  flock -n "$lock" || { say "$name: waiting for another lab that builds it" && flock "$lock"; }
  if [ ! -e "$ARTEFACT/.complete" ]; then
    say "$name: building${hint:+ ($hint)}"
    new=$(mktemp -d "$LAB_CACHE/$name.new.XXXXXX") || return 1
    CLEAN_DIRS+=("$new")
    # A session of its own, so that an interrupt ends the compilers too.
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid bash -euo pipefail -c '. "$LAB_DIR/lib/all.sh"; cd "$1"; shift; "$@"' lab "$new" "$@" \
      >"$log" 2>&1 </dev/null {lock}>&- &
    local builder=$!
    CLEAN_GROUPS+=("$builder")
    beat=$SECONDS
    while kill -0 "$builder" 2>/dev/null; do
      sleep 0.2
      if [ $((SECONDS - beat)) -ge 20 ]; then
        beat=$SECONDS
        say "$name: $((SECONDS - started)) s so far: $(tail -n 1 "$log" | tr -d '\r' | cut -c1-90)"
      fi
    done
    if ! wait "$builder"; then
      exec {lock}>&-
      rm -rf "$new"
      say "$name: failed after $((SECONDS - started)) s; the end of its log:"
      tail -n 30 "$log" >&2
      return 1
    fi
    touch "$new/.complete" && mv "$new" "$ARTEFACT" || return 1
    say "$name: built in $((SECONDS - started)) s"
    forget_old "$name"
  fi
  exec {lock}>&-
}

forget_old() { # keeps the three artefacts of this name that were used last
  local old
  # shellcheck disable=SC2012 # names are ours: NAME-HASH
  ls -td "$LAB_CACHE/$1"-????????????????/.complete 2>/dev/null | tail -n +4 | while read -r old; do
    rm -rf "${old%/.complete}"
  done
}
