# shellcheck shell=bash
# The emulated machine: QEMU's arm64 "virt" board with virtualization extensions, no KVM, one processor
# (two are slower and erratic under emulation: dom0 and guests get several vCPUs on it where a case wants them).

MACHINE=virt,virtualization=on,gic-version=3
MACHINE_BOARD=(-nodefaults -display none -cpu cortex-a57)
KERNEL_ADDRESS=50000000 # Debian's kernel takes 36 MiB; QEMU keeps its own device tree at 48000000
INITRD_ADDRESS=58000000
DOM0_MEMORY=768M

# machine_command DIRECTORY INITRD VCPUS MEMORY DOM0-ARGUMENTS: writes the device tree into DIRECTORY and
# sets MACHINE_COMMAND, for XEN_IMAGE and KERNEL_IMAGE. What is missing is the console: -serial.
machine_command() {
  local tree=$1/machine.dtb initrd=$2 vcpus=$3 board arguments=$5
  board=("${MACHINE_BOARD[@]}" -smp 1 -m "$4")
  qemu-system-aarch64 -machine "$MACHINE,dumpdtb=$tree" "${board[@]}" >"$1/dumpdtb.log" 2>&1 ||
    die "qemu-system-aarch64 could not write its device tree: $(cat "$1/dumpdtb.log")"
  # conring: debug key g prints all grants that are in use, and the cases read what it printed.
  # sched_ratelimit_us: by default a vCPU runs for a millisecond before one that has been woken gets the only
  # processor, which each request would wait for several times.
  # Xen finds its own command line, dom0's kernel and its initrd in /chosen (docs/misc/arm/device-tree/booting.txt).
  fdtput -t x "$tree" /chosen '#address-cells' 2
  fdtput -t x "$tree" /chosen '#size-cells' 2
  fdtput -t s "$tree" /chosen xen,xen-bootargs \
    "dom0_mem=$DOM0_MEMORY dom0_max_vcpus=$vcpus console=dtuart bootscrub=0 sched_ratelimit_us=0 conring_size=512k"
  machine_module "$tree" "$KERNEL_ADDRESS" "$KERNEL_IMAGE" multiboot,kernel
  fdtput -t s "$tree" "/chosen/module@$KERNEL_ADDRESS" bootargs "console=hvc0 loglevel=4 rdinit=/init $arguments"
  machine_module "$tree" "$INITRD_ADDRESS" "$initrd" multiboot,ramdisk
  MACHINE_COMMAND=(qemu-system-aarch64 -machine "$MACHINE" -accel "tcg,thread=multi" "${board[@]}"
    -no-reboot -kernel "$XEN_IMAGE" -dtb "$tree"
    -device "loader,file=$KERNEL_IMAGE,addr=0x$KERNEL_ADDRESS,force-raw=on"
    -device "loader,file=$initrd,addr=0x$INITRD_ADDRESS,force-raw=on")
}

machine_module() { # TREE ADDRESS FILE COMPATIBLE
  local node=/chosen/module@$2
  fdtput -c "$1" "$node"
  fdtput -t s "$1" "$node" compatible "$4" multiboot,module
  fdtput -t x "$1" "$node" reg 0 "$2" 0 "$(printf %x "$(stat -L -c %s "$3")")"
}
