# shellcheck shell=sh
# xen-dm in dom0: one at a time.

DAEMON_LOG=$WORK/daemon.log
DAEMON_CONFIG=$WORK/xen-dm.toml

# daemon_config LINE…: what daemon_start is to find in the configuration file.
daemon_config() { printf '%s\n' "$@" >"$DAEMON_CONFIG"; }

# daemon_start [ARGUMENT…]: in the background; its process id is in DAEMON.
daemon_start() {
  [ ! -e "$DAEMON_CONFIG" ] || set -- --config "$DAEMON_CONFIG" "$@"
  /lab/xen-dm daemon "$@" >>"$DAEMON_LOG" 2>&1 </dev/null &
  DAEMON=$!
  echo "$DAEMON" >"$WORK/daemon.pid"
}

daemon_lives() { kill -0 "$DAEMON" 2>/dev/null; }

# daemon_stop: SIGTERM has to end it, successfully, within ten seconds.
daemon_stop() {
  daemon_lives || fail "the daemon ended by itself"
  kill -TERM "$DAEMON"
  within 10 daemon_gone || fail "the daemon ignores SIGTERM"
  status=0
  wait "$DAEMON" || status=$?
  same "the daemon's exit status" 0 "$status"
  rm -f "$WORK/daemon.pid"
}
daemon_gone() { ! grep -q '^State:.[^ZX]' "/proc/$DAEMON/status" 2>/dev/null; }

# status_value FIELD [ARGUMENT…]: FIELD of the only device that `xen-dm status ARGUMENT…` tells of. What each port of a
# console has counted stands before what all have.
status_value() {
  field=$1
  shift
  /lab/xen-dm status --json "$@" | sed -nE "s/^ *\"$field\": \"?([^\"]*[^\",])\"?,?\$/\1/p" | tail -n 1
}

# What the daemon holds of Xen's: open descriptors, and mappings of guest memory.
daemon_descriptors() { find "/proc/$DAEMON/fd" -mindepth 1 | wc -l; }
daemon_resident() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$DAEMON/status"; } # KiB
daemon_mappings() { grep -c -E '/dev/xen/(privcmd|gntdev)' "/proc/$DAEMON/maps" || true; }
