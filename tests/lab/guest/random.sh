# shellcheck shell=sh
# What guests do with their source of random numbers.

# random_round KIB: so much of it; all is there and nothing repeats. Tells figures.
random_round() {
  until grep -q virtio_rng /sys/class/misc/hw_random/rng_current; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt 40 ] || fail "the source is '$(cat /sys/class/misc/hw_random/rng_current)'"
    sleep 0.2
  done
  began=$(now)
  copy if=/dev/hwrng of=/tmp/random bs=1024 count="$1" iflag=fullblock
  ended=$(now)
  size=$(wc -c </tmp/random)
  [ "$size" = $(($1 * 1024)) ] || fail "only $size bytes came"
  # every 16 bytes are new ones, and what gzip makes of it is no shorter
  repeated=$(hexdump -v -e '16/1 "%02x" "\n"' /tmp/random | sort | uniq -d | wc -l)
  [ "$repeated" = 0 ] || fail "$repeated pieces of 16 bytes came more than once"
  packed=$(gzip -c /tmp/random | wc -c)
  [ "$packed" -gt "$size" ] || fail "gzip makes $packed bytes of $size"
  tell "figures $1 KiB in $(awk -v a="$began" -v b="$ended" 'BEGIN { printf "%.1f s", b - a }')"
}
