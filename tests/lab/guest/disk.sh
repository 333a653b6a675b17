# shellcheck shell=sh
# What guests do with their disk.

# disk_wait: until the driver has the disk, half a minute at most.
disk_wait() {
  left=150
  until [ -b /dev/vda ]; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || fail "no /dev/vda: $(dmesg | grep -i virtio | tail -n 1)"
    sleep 0.2
  done
}

drop_caches() {
  sync
  echo 3 >/proc/sys/vm/drop_caches
}

# requests: reads and writes that the disk has completed (Documentation/admin-guide/iostats.rst)
requests() { awk '{ print $1 " reads, " $5 " writes" }' /sys/block/vda/stat; }

# write_and_verify MIB: a file of noise onto the ext4 of the disk, and read back.
write_and_verify() {
  mib=$1
  must dd if=/dev/urandom of=/tmp/noise bs=1M count="$mib"
  sum=$(sha256sum </tmp/noise | cut -d' ' -f1)
  disk_wait
  must mount -t ext4 /dev/vda /mnt
  tell "mounted $(now)"

  began=$(now)
  must dd if=/tmp/noise of=/mnt/noise bs=1M conv=fsync
  must sync
  wrote=$(now)
  drop_caches
  read_began=$(now)
  must dd if=/mnt/noise of=/dev/null bs=1M
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
