#!/bin/sh
# The guest's part of case $CASE; the guest is $NAME. Words for dom0 are lines "LAB-GUEST: WORD …" on the console.
set -u

tell() { echo "LAB-GUEST: $*"; }
fail() {
  tell "failed $*"
  exit 1
}
must() { "$@" || fail "'$*' ended with status $?"; }

# wait_for WORD: until dom0 says it (guest_do).
wait_for() {
  until [ "${heard:-}" = "$1" ]; do read -r heard </dev/console; done
}
# wait_all PID…: every one has to succeed; each has told its failure itself.
wait_all() {
  for pid; do wait "$pid" || exit 1; done
}

now() { cut -d' ' -f1 /proc/uptime; }

# shellcheck source=/dev/null
. /lab/disk.sh
# shellcheck source=/dev/null
. /lab/console.sh
# shellcheck source=/dev/null
. /lab/random.sh
# shellcheck source=/dev/null
. "/lab/cases/$CASE"

tell "started $(now) $(uname -r)"
guest_part
tell "finished $(now)"
