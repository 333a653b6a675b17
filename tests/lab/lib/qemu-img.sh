# shellcheck shell=bash
# QEMU's qemu-img for dom0, from Debian's arm64 packages: for cases that say "# tools: qemu-img".

QEMU_IMG_PACKAGES=(qemu-utils libc6 libzstd1 zlib1g libaio1t64 liburing2 libnettle8t64 libhogweed6t64 libgmp10 libnuma1
  libglib2.0-0t64 libatomic1 libpcre2-8-0 libgnutls30t64 libp11-kit0 libffi8 libidn2-0 libunistring5 libtasn1-6)

# need_qemu_img: sets ARTEFACT to a directory with archive.cpio.
need_qemu_img() {
  host_need "${LAB_HOST_PACKAGES[@]}"
  artefact qemu-img "$(content_key "$LAB_SUITE" "${QEMU_IMG_PACKAGES[*]}" \
    "$(declare -f build_qemu_img copy_with_libraries cpio_of)")" "9 MB to download" build_qemu_img
}

build_qemu_img() {
  apt_state qemu-img arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages qemu-img packages "${QEMU_IMG_PACKAGES[@]}"
  mkdir -p root/usr/{bin,lib/aarch64-linux-gnu}
  copy_with_libraries packages root usr/bin/qemu-img
  cpio_of root >archive.cpio
  rm -rf packages root
}
