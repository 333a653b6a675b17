# shellcheck shell=bash
# The two kernels that dom0 and guests run.
#   lab     Linux 6.12 with resources/lab/linux.config: XEN_VIRTIO (guests use grants) and
#           XEN_PRIVCMD_EVENTFD (irqfd), which no Debian kernel has. Everything built in; 12 CPU minutes.
#   debian  Debian's kernel package untouched, and the modules that this needs.

# What is loaded into both dom0 and guests of the stock kernel, dependencies apart.
STOCK_MODULES=(xen-privcmd xenfs xen-evtchn xen-gntdev xen-gntalloc
  virtio_mmio virtio_blk crc32c_generic ext4 loop)

# need_kernel FLAVOUR: sets KERNEL_IMAGE and KERNEL_MODULES (a cpio archive, or nothing).
need_kernel() {
  KERNEL_MODULES=
  if [ "$1" = debian ]; then
    host_need "${LAB_HOST_PACKAGES[@]}"
    artefact kernel-debian \
      "$(content_key "$LAB_SUITE" "${STOCK_MODULES[*]}" "$(declare -f fetch_debian_kernel cpio_of)")" \
      "90 MB to download" fetch_debian_kernel
    KERNEL_MODULES=$ARTEFACT/modules.cpio
  elif [ -n "${XEN_LAB_PREBUILT:-}" ]; then
    prebuilt Image.gz Image
  else
    host_need "${LAB_HOST_PACKAGES[@]}" "${BUILD_HOST_PACKAGES[@]}"
    artefact kernel-lab "$(lab_kernel_key)" "150 MB of source, about 12 minutes of CPU" build_lab_kernel
  fi
  KERNEL_IMAGE=$ARTEFACT/Image
}

lab_kernel_key() {
  content_key "$LAB_SUITE" "$(declare -f build_lab_kernel)" "$(without_comments "$LAB_RESOURCES/linux.config")"
}

# lab_kernel_at_hand: is there a lab kernel that need not be built?
lab_kernel_at_hand() {
  [ -n "${XEN_LAB_PREBUILT:-}" ] || [ -e "$LAB_CACHE/kernel-lab-$(lab_kernel_key)/.complete" ]
}

build_lab_kernel() {
  local option
  apt_state kernel-lab amd64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages kernel-lab package linux-source-6.12
  mkdir source
  tar --strip-components=1 -C source -xf package/usr/src/linux-source-6.12.tar.xz
  rm -rf package
  export ARCH=arm64 CROSS_COMPILE=$CROSS
  make -C source O="$PWD/build" KCONFIG_ALLCONFIG="$LAB_RESOURCES/linux.config" allnoconfig
  for option in XEN_VIRTIO XEN_GRANT_DMA_OPS XEN_PRIVCMD_EVENTFD XEN_GNTDEV VIRTIO_MMIO VIRTIO_BLK EXT4_FS; do
    grep -qx "CONFIG_$option=y" build/.config || { echo "the configuration lost CONFIG_$option" && return 1; }
  done
  make -C source -j"$(nproc)" O="$PWD/build" Image
  cp build/arch/arm64/boot/Image Image
  cp build/.config config
  rm -rf source build
}

fetch_debian_kernel() {
  local version name file
  apt_state kernel-debian arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  name=$(apt_in kernel-debian apt-cache depends linux-image-arm64 | awk '$1 == "Depends:" { print $2; exit }')
  fetch_packages kernel-debian package "$name"
  version=${name#linux-image-}
  cp "package/boot/vmlinuz-$version" Image
  [ -d package/lib ] || ln -s usr/lib package/lib # depmod looks in lib
  /sbin/depmod -b package "$version"
  mkdir -p root/modules
  for name in "${STOCK_MODULES[@]}"; do
    # modules.dep: "path: dependency…", the last dependency to be loaded first
    awk -F'[: ]+' -v want="/${name//[-_]/[-_]}[.]ko" '
      $1 ~ want { for (i = NF; i >= 1; i--) if ($i != "") print $i; found = 1; exit }
      END { exit !found }' "package/lib/modules/$version/modules.dep"
  done | awk '!seen[$0]++' >order
  while read -r file; do
    name=$(basename "$file" .xz)
    xz -dc "package/lib/modules/$version/$file" >"root/modules/$name"
    echo "$name" >>root/modules/order
  done <order
  cpio_of root >modules.cpio
  rm -rf package root order
}
