# shellcheck shell=sh
# How the data of a guest's requests was reached: what xen-dm counted, and rounds that make it count.

# counted FIELD WAY NUMBER: a counter of the only device's, compared: "is", "above".
counted() {
  found=$(status_value "$1")
  case $2 in
  is) same "the daemon's count of '$1'" "$3" "$found" ;;
  above) [ "$found" -gt "$3" ] || fail "the daemon's count of '$1' is $found, not above $3" ;;
  esac
}

# null_disk NAME MIB BLOCK: a block device in memory that keeps what is written, blocks of BLOCK bytes; /dev/NAME.
# Direct I/O on it wants whole blocks and aligned memory, which tmpfs does not.
null_disk() {
  [ -d /sys/kernel/config/nullb ] || mount -t configfs configfs /sys/kernel/config
  null=/sys/kernel/config/nullb/$1
  mkdir "$null"
  echo "$2" >"$null/size"
  echo "$3" >"$null/blocksize"
  echo 1 >"$null/memory_backed"
  echo 1 >"$null/power"
  within 5 [ -b "/dev/$1" ] || fail "there is no /dev/$1"
}

null_disk_gone() { # NAME
  echo 0 >"/sys/kernel/config/nullb/$1/power"
  rmdir "/sys/kernel/config/nullb/$1"
}

# grants_round MODE: a guest on grants writes and reads requests of every size; the image holds them afterwards.
# The daemon goes on, for its counters.
grants_round() {
  blank_disk 48
  daemon_config "granted-data = \"$1\""
  daemon_start
  guest_config lab "$(disk_line "$DISK" rw 1)"
  guest_create lab
  guest_wait lab finished 90
  same "the image" "$(guest_says lab checksum)" "$(checksum "$DISK")"
  counted rejected is 0
  counted host_errors is 0
  counted loans_lost is 0
  note "$(guest_says lab figures)"
}

# direct_round GRANTS: 10 000 writes and 10 000 reads past dom0's page cache, and requests of every size.
direct_round() {
  null_disk nullb1 64 4096
  daemon_config '[guest.lab.disk.xvda]' 'direct = true'
  daemon_start
  guest_config lab "$(disk_line /dev/nullb1 rw "$1")"
  guest_create lab
  guest_wait lab finished 140
  same "the device" "$(guest_says lab checksum)" "$(checksum /dev/nullb1)"
  counted rejected is 0
  counted host_errors is 0
  counted bounced_pinned above 20000
  # all of it is bounced, by whatever way it would be reached otherwise
  counted direct is 0
  counted granted is 0
  note "$(guest_says lab figures)"
  guest_destroy lab
  daemon_stop
  null_disk_gone nullb1
}
