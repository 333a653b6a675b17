# shellcheck shell=sh
# vhost-user back ends beside xen-dm: one at a time. Cases name those of others that they want in their header
# (lib/back-ends.sh); they are in /lab/back-ends.

# vhost_user DEVICE ID [LINE…]: the section of xen-dm's configuration for guest lab's DEVICE (device4) of virtio type
# ID behind socket SOCKET, for daemon_config.
SOCKET=$WORK/back-end.sock
vhost_user() {
  device=$1 id=$2
  shift 2
  printf '%s\n' "[guest.lab.virtio.$device.vhost-user]" "socket = \"$SOCKET\"" "virtio-id = $id" "$@"
}

# back_end_start PROGRAM [ARGUMENT…]: in the background, until its socket is there; its process id is in BACK_END.
back_end_start() {
  rm -f "$SOCKET" # of one that was killed
  PATH=/lab/back-ends:$PATH "$@" >>"$WORK/back-end.log" 2>&1 </dev/null &
  BACK_END=$!
  echo "$BACK_END" >"$WORK/back-end.pid"
  # rust-vmm's take the name away as soon as xen-dm has connected, which may be at once; the kernel still tells it
  within 20 grep -qF "$SOCKET" /proc/net/unix || fail "$1 has no socket: $(tail -n 1 "$WORK/back-end.log")"
}

# back_end_kill: as it stands.
back_end_kill() {
  kill -KILL "$BACK_END" 2>/dev/null || fail "the back end ended by itself: $(tail -n 1 "$WORK/back-end.log")"
  wait "$BACK_END" 2>/dev/null || true
}

# storage_daemon IMAGE: QEMU's, with a raw image for the guest to write.
storage_daemon() {
  back_end_start qemu-storage-daemon --blockdev "driver=file,node-name=image,filename=$1" \
    --export "type=vhost-user-blk,id=export,node-name=image,writable=on,num-queues=2,addr.type=unix,addr.path=$SOCKET"
}
