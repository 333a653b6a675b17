# shellcheck shell=sh
# What guests do with their consoles.

# console_at SLOT: the hvc that stands for it. hvc0 is Xen's own console; the driver numbers the others as they
# come, and only its debug file says which is whose.
console_at() {
  [ -e /sys/kernel/debug/virtio-ports ] || must mount -t debugfs debug /sys/kernel/debug
  port=$(ls "/sys/devices/platform/$(platform_of "$1")/"virtio*/virtio-ports) || fail "no console in slot $1"
  sed -n 's/^console_vtermno: */hvc/p' "/sys/kernel/debug/virtio-ports/$port"
}
