# shellcheck shell=bash
# Linux's simulated I2C adapter, for cases that say "# tools: i2c-stub". It exists as a module alone, which no Debian
# package has: it is built from Debian's source for the lab's kernel, however that was come by, with the configuration
# that the kernel carries in itself.

# need_i2c_stub: sets ARTEFACT to a directory with archive.cpio, which holds /lab/modules/i2c-stub.ko.
need_i2c_stub() {
  need_kernel lab
  host_need "${BUILD_HOST_PACKAGES[@]}"
  artefact i2c-stub "$(content_key "$LAB_SUITE" "$(sha256sum <"$KERNEL_IMAGE")" "$(declare -f build_i2c_stub)")" \
    "150 MB of source, under a minute" build_i2c_stub "$KERNEL_IMAGE"
}

build_i2c_stub() { # IMAGE
  local release
  apt_state kernel-lab amd64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages kernel-lab package linux-source-6.12
  mkdir -p source build module root/lab/modules
  # all of the source is 1.7 GB, most of it drivers
  mv package/usr/src/linux-source-6.12.tar.xz .
  tar --strip-components=1 -C source --exclude='*/drivers/*.[chS]' --exclude='*/sound/*.[ch]' -xf linux-source-6.12.tar.xz
  tar --strip-components=3 -C module --wildcards -xf linux-source-6.12.tar.xz '*/drivers/i2c/i2c-stub.c'
  rm -rf package linux-source-6.12.tar.xz
  source/scripts/extract-ikconfig "$1" >build/.config
  # A later point release of the source fits the kernel as well, but loading compares the names.
  release=$(grep -aom 1 'Linux version [^ ]*' "$1" | cut -d' ' -f3)
  export ARCH=arm64 CROSS_COMPILE=$CROSS
  make -C source O="$PWD/build" olddefconfig
  make -C source O="$PWD/build" KERNELRELEASE="$release" -j"$(nproc)" modules_prepare
  echo 'obj-m := i2c-stub.o' >module/Makefile
  # what the kernel exports stands in no list here; it is looked for when the module is loaded
  make -C source O="$PWD/build" M="$PWD/module" KERNELRELEASE="$release" KBUILD_MODPOST_WARN=1 modules
  "${CROSS}strip" -g -o root/lab/modules/i2c-stub.ko module/i2c-stub.ko
  cpio_of root >archive.cpio
  rm -rf source build module root
}
