# shellcheck shell=bash
# The arm64 programs of dom0 and guests, from Debian packages: busybox, Xen's tools, e2fsprogs.

USERLAND_PACKAGES=(busybox-static xen-utils-4.20 xenstore-utils libxenmisc4.20 libxencall1 libxendevicemodel1
  libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoolcore1 libxentoollog1
  libyajl2 libfdt1 libuuid1 zlib1g libgcc-s1 libc6 e2fsprogs libext2fs2t64 libcom-err2 libss2 libblkid1)
XEN_TOOLS=(xl xenstored xenconsoled xenconsole xen-init-dom0 init-dom0less libxl-save-helper xenstore-control)
FILE_SYSTEM_TOOLS=(mke2fs e2fsck)

# need_userland: sets USERLAND_DOM0 (a cpio archive) and BUSYBOX (a static arm64 file).
need_userland() {
  host_need "${LAB_HOST_PACKAGES[@]}"
  artefact userland "$(content_key "$LAB_SUITE" "${USERLAND_PACKAGES[*]}" "${XEN_TOOLS[*]}" "${FILE_SYSTEM_TOOLS[*]}" \
    "$(declare -f build_userland copy_with_libraries cpio_of)")" "25 MB to download" build_userland
  USERLAND_DOM0=$ARTEFACT/dom0.cpio
  BUSYBOX=$ARTEFACT/busybox
}

build_userland() {
  local tool
  apt_state userland arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages userland packages "${USERLAND_PACKAGES[@]}"
  cp packages/usr/bin/busybox busybox
  mkdir -p dom0/{bin,sbin,proc,sys,dev,run,tmp,root,lab,mnt,etc/xen,usr/bin,usr/sbin,var/lib/xen,var/lib/xenstored,var/log/xen}
  mkdir -p dom0/usr/lib/{aarch64-linux-gnu,xen-4.20/bin}
  ln -s /usr/lib dom0/lib
  ln -s /run dom0/var/run
  ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 dom0/usr/lib/ld-linux-aarch64.so.1
  cp busybox dom0/bin/
  ln -s busybox dom0/bin/sh
  for tool in "${XEN_TOOLS[@]}"; do
    copy_with_libraries packages dom0 "usr/lib/xen-4.20/bin/$tool"
    ln -s "/usr/lib/xen-4.20/bin/$tool" "dom0/usr/sbin/$tool"
  done
  for tool in packages/usr/bin/xenstore*; do copy_with_libraries packages dom0 "usr/bin/${tool##*/}"; done
  for tool in "${FILE_SYSTEM_TOOLS[@]}"; do copy_with_libraries packages dom0 "usr/sbin/$tool"; done
  # opened by the C library when a thread is cancelled, which no dynamic section tells
  cp -L packages/usr/lib/aarch64-linux-gnu/libgcc_s.so.1 dom0/usr/lib/aarch64-linux-gnu/
  ln -s mke2fs dom0/usr/sbin/mkfs.ext4
  cp packages/etc/mke2fs.conf dom0/etc/
  : >dom0/etc/xen/xl.conf
  cpio_of dom0 >dom0.cpio
  rm -rf packages dom0
}

# copy_with_libraries FROM TO FILE: FILE and every library it needs, as its dynamic section names them.
copy_with_libraries() {
  local from=$1 to=$2 file=$3 library
  [ ! -e "$to/$file" ] || return 0
  cp -L "$from/$file" "$to/$file"
  while read -r library; do
    copy_with_libraries "$from" "$to" "usr/lib/aarch64-linux-gnu/$library"
  done < <("${CROSS}readelf" -d "$from/$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
}

# cpio_of DIRECTORY: its contents as an initramfs segment, owned by root. Not compressed: unpacking under
# emulation would cost more than loading saves.
cpio_of() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet); }
