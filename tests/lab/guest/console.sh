# shellcheck shell=sh
# What guests do with their consoles.

# console_at SLOT: the hvc that stands for it. hvc0 is Xen's own console; the driver numbers the others as they
# come, and only its debug file says which is whose.
console_at() {
  port=$(ls "/sys/devices/platform/$(platform_of "$1")/"virtio*/virtio-ports) || fail "no console in slot $1"
  hvc_of "$port"
}

# hvc_of PORT: the same for one port of several, such as vport0p1.
hvc_of() { echo "hvc$(port_says "$1" console_vtermno)"; }

# port_says PORT FIELD: what the driver says of a port.
port_says() {
  [ -e /sys/kernel/debug/virtio-ports ] || must mount -t debugfs debug /sys/kernel/debug
  sed -n "s/^$2: *//p" "/sys/kernel/debug/virtio-ports/$1"
}

# port_named NAME: the port of that name, such as vport0p1.
port_named() {
  for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name" 2>/dev/null)" = "$1" ]; then
      basename "$port"
      return
    fi
  done
  fail "no port is called $1; there are: $(cat /sys/class/virtio-ports/*/name | tr '\n' ' ')"
}
