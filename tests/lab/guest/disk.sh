# shellcheck shell=sh
# What guests do with their disk.

# disk_wait [NAME]: until the driver has the disk, two minutes at most: an emulator on a busy machine is slow.
# shellcheck disable=SC2120 # cases give the name
disk_wait() {
  left=600
  until [ -b "/dev/${1:-vda}" ]; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || fail "no /dev/${1:-vda}: $(dmesg | grep -i virtio | tail -n 1)"
    sleep 0.2
  done
}

drop_caches() {
  sync
  echo 3 >/proc/sys/vm/drop_caches
}

# requests: reads and writes that the disk has completed (Documentation/admin-guide/iostats.rst)
requests() { awk '{ print $1 " reads, " $5 " writes" }' /sys/block/vda/stat; }

# load DISK MIB: reads and writes on 2 × MIB of the disk, through the caches and past them, until the disk is gone.
load() {
  load_begin "$1" "$2"
  (while dd if=/dev/zero of="$node" bs=1M seek="$2" count="$2" conv=fsync; do :; done 2>/dev/null) &
  tell loading
  wait
}

# load_direct DISK MIB: the same, past the caches alone: a disk that vanishes leaves nothing dirty, for which sync(2)
# would wait for ever.
load_direct() {
  load_begin "$1" "$2"
  tell loading
  wait
}

load_begin() { # DISK MIB
  # a node of its own: a dd to /dev/NAME would make a file where the disk has gone
  node=/tmp/node-$1
  [ -e "$node" ] || must mknod "$node" b "$(cut -d: -f1 "/sys/block/$1/dev")" "$(cut -d: -f2 "/sys/block/$1/dev")"
  (while dd if=/dev/zero of="$node" bs=64k count=$(($2 * 16)) oflag=direct; do :; done 2>/dev/null) &
  (while dd if="$node" of=/dev/null bs=64k count=$(($2 * 32)) iflag=direct; do :; done 2>/dev/null) &
}

# copy ARGUMENT…: dd, which is heard only when it fails.
copy() {
  said=$(dd "$@" 2>&1) || fail "dd $*: $said"
}

# write_and_verify MIB: a file of noise onto the ext4 of the disk, and read back.
write_and_verify() {
  mib=$1
  copy if=/dev/urandom of=/tmp/noise bs=1M count="$mib"
  sum=$(sha256sum </tmp/noise | cut -d' ' -f1)
  disk_wait
  must mount -t ext4 /dev/vda /mnt
  tell "mounted $(now)"

  began=$(now)
  copy if=/tmp/noise of=/mnt/noise bs=1M conv=fsync
  must sync
  wrote=$(now)
  drop_caches
  read_began=$(now)
  copy if=/mnt/noise of=/dev/null bs=1M
  read_ended=$(now)
  drop_caches
  found=$(sha256sum </mnt/noise | cut -d' ' -f1)
  [ "$found" = "$sum" ] || fail "the file reads back with checksum $found instead of $sum"
  must umount /mnt
  tell "checksum $sum"
  tell "figures $(awk -v n="$mib" -v a="$began" -v b="$wrote" -v c="$read_began" -v d="$read_ended" -v r="$(requests)" '
    function rate(s) { return s > 0 ? sprintf("%.0f MiB/s", n / s) : "no time" }
    BEGIN { printf "%d MiB written in %.2f s (%s), read in %.2f s (%s), verified; %s", n, b - a, rate(b - a), d - c, rate(d - c), r }')"
}

# platform_of SLOT: its name as a platform device, counted from 0 (libxl puts devices 0x200 bytes apart).
platform_of() { printf '%x.virtio' $((0x2000000 + $1 * 0x200)); }

# disk_at SLOT: the name of the disk in it.
disk_at() { ls "/sys/devices/platform/$(platform_of "$1")/"virtio*/block; }

disk_sum() { sha256sum <"/dev/$1" | cut -d' ' -f1; }

# noise_round DISK FIRST MIB: noise from MiB FIRST on, past the caches, and read back. Sets SUM to its checksum.
noise_round() {
  file=/tmp/noise-$1-$2
  copy if=/dev/urandom of="$file" bs=1M count="$3"
  SUM=$(sha256sum <"$file" | cut -d' ' -f1)
  copy if="$file" of="/dev/$1" bs=64k seek=$(($2 * 16)) oflag=direct
  found=$(dd if="/dev/$1" bs=64k skip=$(($2 * 16)) count=$(($3 * 16)) iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1)
  [ "$found" = "$SUM" ] || fail "$1 reads back with checksum $found instead of $SUM"
  rm "$file"
}

# all_sizes DISK [FIGURES]: requests of every size; tells the disk's checksum, and figures.
all_sizes() {
  disk_wait "$1"
  said=$(must sizes "/dev/$1") || fail "sizes: $said"
  drop_caches
  tell "checksum $(disk_sum "$1")"
  tell "figures ${2:+$2, }$said"
}
