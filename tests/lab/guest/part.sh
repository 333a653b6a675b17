#!/bin/sh
# The guest's part of case $CASE. Words for dom0 are lines "LAB-GUEST: WORD …" on the console.
set -u

tell() { echo "LAB-GUEST: $*"; }
fail() {
  tell "failed $*"
  exit 1
}
must() { "$@" || fail "'$*' ended with status $?"; }
now() { cut -d' ' -f1 /proc/uptime; }

# shellcheck source=/dev/null
. /lab/disk.sh
# shellcheck source=/dev/null
. "/lab/cases/$CASE"

tell "started $(now) $(uname -r)"
guest_part
tell "finished $(now)"
