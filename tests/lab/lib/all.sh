# shellcheck shell=bash
# Everything under lib/, in the order in which it builds on each other.
for part in common host debian tools xen kernel userland qemu-img i2c-stub programs rust-aarch64 back-ends xen-dm initrd machine cases run; do
  # shellcheck source=/dev/null
  . "$(dirname "${BASH_SOURCE[0]}")/$part.sh"
done
unset part
