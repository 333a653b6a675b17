# shellcheck shell=sh
# What libxl would write into xenstore to take away a single device, or to give one: its own commands know only
# disks that a guest finds through xenstore (xl-block-attach(1)).

backend_of() { echo "/local/domain/0/backend/$2/$1/$3"; } # DOMID KIND DEVID

# device_close DOMID KIND DEVID: as libxl__device_destroy begins; waits for state 6, then removes the nodes.
# Sets TOOK, in seconds.
device_close() {
  backend=$(backend_of "$@")
  began=$(now)
  xenstore-write "$backend/online" 0 "$backend/state" 5
  within 10 device_closed || fail "$backend is not closed after 10 s: state $(xenstore-read "$backend/state")"
  TOOK=$(since "$began")
  xenstore-rm "$backend"
}
device_closed() { [ "$(xenstore-read "$backend/state")" = 6 ]; }

# device_nodes DOMID KIND DEVID: KEY VALUE of every node, as arguments for device_open; no value has blanks.
device_nodes() {
  for key in $(xenstore-list "$(backend_of "$@")"); do
    echo "$key" "$(xenstore-read "$(backend_of "$@")/$key")"
  done
}

# device_open DOMID KIND DEVID KEY VALUE…: a new device, in one transaction; waits until it is served.
device_open() {
  backend=$(backend_of "$@")
  shift 3
  set -- "$@" state 1 online 1
  count=$#
  while [ "$count" -gt 0 ]; do # each key gets its directory
    key=$1 value=$2
    shift 2
    set -- "$@" "$backend/$key" "$value"
    count=$((count - 2))
  done
  xenstore-write "$@"
  within 10 device_waits || fail "$backend is in state $(xenstore-read "$backend/state"): $(xenstore-read "$backend/error" 2>/dev/null)"
}
device_waits() { [ "$(xenstore-read "$backend/state")" = 2 ]; }
