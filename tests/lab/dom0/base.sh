# shellcheck shell=sh
# What every case needs: to fail with a reason, to tell, to measure, to wait.
# Sourced by one-case.sh, which runs with "set -eu".

WORK=/tmp/case # the case's own directory, gone before the next case

fail() {
  echo "FAIL: $*"
  exit 1
}

# note TEXT: shown beside the case's result.
note() {
  echo "note: $*"
  echo "LAB: note $CASE $*" >/dev/console
}

# step TEXT: how far it is, for who watches (./demo).
step() {
  echo "step: $*"
  echo "LAB: step $CASE $*" >/dev/console
}

now() { cut -d' ' -f1 /proc/uptime; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# within SECONDS COMMAND…: repeats COMMAND until it succeeds; fails after SECONDS.
within() {
  left=$(($1 * 5))
  shift
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.2
  done
}

# same WHAT EXPECTED FOUND
same() { [ "$2" = "$3" ] || fail "$1 is '$3' instead of '$2'"; }
