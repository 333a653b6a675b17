# shellcheck shell=bash
# The root file systems. dom0's is cpio archives after each other: the userland, the kernel's modules where there are
# any, back ends and tools that the cases want, and what changes from run to run (scripts, cases, xen-dm, the guest).

# make_initrd DIRECTORY: sets INITRD, made in DIRECTORY. need_userland, need_programs, need_kernel, need_tools and
# need_lab_back_ends come first; XEN_DM names the arm64 binary, SUITE the test program or nothing. GUEST_INITRD is the
# guests'.
make_initrd() {
  local root=$1/dom0 guest=$1/guest
  INITRD=$1/dom0.cpio
  GUEST_INITRD=$1/guest.cpio
  mkdir -p "$guest"/{bin,proc,sys,dev,tmp,mnt,lab} "$root"/lab/guest
  cp "$BUSYBOX" "$guest/bin/busybox"
  ln -s busybox "$guest/bin/sh"
  install -m 755 "$LAB_DIR/guest/init" "$guest/init"
  cp "$LAB_DIR"/guest/*.sh "$guest/lab/"
  cp -r "$PROGRAMS" "$guest/lab/bin"
  cp -r "$LAB_DIR/cases" "$guest/lab/cases"

  install -m 755 "$LAB_DIR/dom0/init" "$root/init"
  cp "$LAB_DIR"/dom0/*.sh "$root/lab/"
  cp -r "$LAB_DIR/cases" "$root/lab/cases"
  cp -r "$PROGRAMS" "$root/lab/bin"
  install -m 755 "$XEN_DM" "$root/lab/xen-dm"
  [ -z "$SUITE" ] || install -m 755 "$SUITE" "$root/lab/suite"
  cp "$KERNEL_IMAGE" "$root/lab/guest/Image"
  { cpio_of "$guest" && add_modules; } >"$GUEST_INITRD"
  cp "$GUEST_INITRD" "$root/lab/guest/initrd"
  { cat "$USERLAND_DOM0" "${BACK_END_ARCHIVES[@]}" "${TOOL_ARCHIVES[@]}" && add_modules && cpio_of "$root"; } >"$INITRD"
  rm -rf "$root" "$guest"
}

add_modules() { [ -z "$KERNEL_MODULES" ] || cat "$KERNEL_MODULES"; }
