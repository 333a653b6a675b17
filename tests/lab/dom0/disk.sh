# shellcheck shell=sh
# Disks and their images.

DISK=$WORK/disk.img

checksum() { sha256sum "$1" | cut -d' ' -f1; }

# blank_disk MIB [FILE] / random_disk MIB [FILE]: the image, sparse or full of noise.
blank_disk() { dd if=/dev/zero of="${2:-$DISK}" bs=1M count=0 seek="$1" 2>/dev/null; }
random_disk() { dd if=/dev/urandom of="${2:-$DISK}" bs=1M count="$1" 2>/dev/null; }

# file_system_round GRANTS: a guest writes a file on an ext4 that dom0 made and verifies it (guest/disk.sh);
# after its end dom0 finds the file system clean and the same file on it.
file_system_round() {
  blank_disk 64
  mkfs.ext4 -q -F "$DISK"
  daemon_start
  step "dom0: xen-dm daemon runs, a 64 MiB ext4 image is made; xl create"
  guest_config lab "$(disk_line "$DISK" rw "$1")"
  guest_create lab
  step "guest: booting, domain $GUEST"
  guest_wait lab mounted 60
  step "guest: Linux $(guest_says lab started | cut -d' ' -f2) has its disk, the ext4 is mounted"
  guest_wait lab finished 90
  step "guest: file written, read back and verified; xl destroy"
  guest_destroy lab
  daemon_stop
  step "dom0: e2fsck, and the file's checksum"

  e2fsck -f -n "$DISK" || fail "e2fsck finds faults"
  mount -t ext4 -o loop,ro "$DISK" /mnt
  found=$(checksum /mnt/noise)
  umount /mnt
  same "the checksum of the file in dom0" "$(guest_says lab checksum)" "$found"
  note "$(guest_says lab figures)"
}

# sum_at IMAGE FIRST MIB: the checksum of a part of it, in MiB.
sum_at() { dd if="$1" bs=1M skip="$2" count="$3" 2>/dev/null | sha256sum | cut -d' ' -f1; }
