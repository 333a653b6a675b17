# shellcheck shell=bash
# The emulated machine: QEMU's arm64 "virt" board with virtualization extensions, no KVM, one processor
# (two are slower and erratic under emulation: dom0 and guests get several vCPUs on it where a case wants them).

MACHINE=virt,virtualization=on,gic-version=3
MACHINE_BOARD=(-nodefaults -display none -cpu cortex-a57)
KERNEL_ADDRESS=50000000 # Debian's kernel takes 36 MiB; QEMU keeps its own device tree at 48000000
INITRD_ADDRESS=58000000
DOM0_MEMORY=768M

# machine_command DIRECTORY INITRD VCPUS MEMORY MACHINE DOM0-ARGUMENTS: writes the device tree into DIRECTORY and
# sets MACHINE_COMMAND, for XEN_IMAGE and KERNEL_IMAGE. What is missing is the console: -serial. MACHINE is plain,
# or direct-mapped: Xen starts a second domain beside dom0 (below).
machine_command() {
  local tree=$1/machine.dtb initrd=$2 vcpus=$3 board arguments=$6
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
  [ "$5" != direct-mapped ] || machine_direct_mapped "$1" "$tree"
}

# A domain that Xen makes at its start, with the machine's own addresses (docs/misc/arm/device-tree/booting.txt:
# direct-map), 256 MiB at 2 GiB. Its kernel is dom0's, its initrd the guests', its case the one that is named like
# the machine. It is there before any device model, so its driver has to come later; and it has no xenstore, whose
# page init-dom0less could put nowhere (GUEST_MAGIC_BASE is no address of such a domain's).
GUEST_KERNEL_ADDRESS=60000000
GUEST_INITRD_ADDRESS=68000000
GUEST_TREE_ADDRESS=6f000000
machine_direct_mapped() { # DIRECTORY TREE
  local tree=$2 node=/chosen/domU1 partial=$1/direct-mapped.dtb file
  dtc -q -O dtb -o "$partial" "$LAB_RESOURCES/direct-mapped.dts" || die "direct-mapped.dts could not be compiled"
  fdtput -c "$tree" "$node"
  fdtput -t s "$tree" "$node" compatible xen,domain
  fdtput -t x "$tree" "$node" '#address-cells' 2
  fdtput -t x "$tree" "$node" '#size-cells' 2
  fdtput -t x "$tree" "$node" cpus 1
  fdtput -t x "$tree" "$node" memory 0 40000 # KiB
  fdtput -t x "$tree" "$node" xen,static-mem 0 80000000 0 10000000
  fdtput "$tree" "$node" direct-map
  fdtput -t x "$tree" "$node" nr_spis 20 # without it the guest has its UART's interrupt alone
  fdtput "$tree" "$node" vpl011
  fdtput -t s "$tree" "$node" xen,enhanced no-xenstore # the hypervisor's node, and with it the feature word
  machine_module "$tree" "$GUEST_KERNEL_ADDRESS" "$KERNEL_IMAGE" multiboot,kernel "$node"
  fdtput -t s "$tree" "$node/module@$GUEST_KERNEL_ADDRESS" bootargs \
    "console=ttyAMA0 loglevel=4 rdinit=/init lab.case=direct-mapped lab.name=direct-mapped lab.modules=later"
  machine_module "$tree" "$GUEST_INITRD_ADDRESS" "$GUEST_INITRD" multiboot,ramdisk "$node"
  machine_module "$tree" "$GUEST_TREE_ADDRESS" "$partial" multiboot,device-tree "$node"
  for file in "$KERNEL_IMAGE=$GUEST_KERNEL_ADDRESS" "$GUEST_INITRD=$GUEST_INITRD_ADDRESS" \
    "$partial=$GUEST_TREE_ADDRESS"; do
    MACHINE_COMMAND+=(-device "loader,file=${file%=*},addr=0x${file##*=},force-raw=on")
  done
}

machine_module() { # TREE ADDRESS FILE COMPATIBLE [DOMAIN]
  local node=${5:-/chosen}/module@$2
  fdtput -c "$1" "$node"
  fdtput -t s "$1" "$node" compatible "$4" multiboot,module
  fdtput -t x "$1" "$node" reg 0 "$2" 0 "$(printf %x "$(stat -L -c %s "$3")")"
}
