# shellcheck shell=bash
# The two hypervisors.
#   lab     Debian's Xen source, built with resources/lab/xen.config; half a minute
#   debian  Debian's own arm64 build, which has no ioreq servers: every DM_OP answers ENOSYS

# need_xen FLAVOUR: sets XEN_IMAGE.
need_xen() {
  if [ "$1" = debian ]; then
    host_need "${LAB_HOST_PACKAGES[@]}"
    artefact xen-debian "$(content_key "$LAB_SUITE" "$(declare -f fetch_debian_xen)")" "5 MB to download" fetch_debian_xen
    XEN_IMAGE=$ARTEFACT/xen
    return
  fi
  if [ -n "${XEN_LAB_PREBUILT:-}" ]; then
    prebuilt xen.gz xen
    XEN_IMAGE=$ARTEFACT/xen
    return
  fi
  host_need "${LAB_HOST_PACKAGES[@]}" "${BUILD_HOST_PACKAGES[@]}"
  artefact xen "$(content_key "$LAB_SUITE" "$(declare -f build_xen)" "$(without_comments "$LAB_RESOURCES/xen.config")")" \
    "5 MB of source, about 30 s on two cores" build_xen
  XEN_IMAGE=$ARTEFACT/xen
}

# prebuilt FILE.gz NAME: unpacks one of XEN_LAB_PREBUILT's images.
prebuilt() {
  local file=$XEN_LAB_PREBUILT/$1
  [ -r "$file" ] || die "XEN_LAB_PREBUILT=$XEN_LAB_PREBUILT has no readable $1 (xen.gz and Image.gz are expected there)"
  artefact "prebuilt-$2" "$(sha256sum <"$file" | cut -c1-16)" "" unpack_prebuilt "$(realpath "$file")" "$2"
}
fetch_debian_xen() {
  apt_state xen-debian arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages xen-debian package xen-hypervisor-4.20-arm64
  cp package/boot/xen-4.20-arm64 xen
  rm -rf package
}
unpack_prebuilt() { gzip -dc "$1" >"$2"; }

build_xen() {
  local option
  apt_state xen amd64 "deb-src $(debian_mirror Debian) $LAB_SUITE main"
  apt_in xen apt-get -qq source --download-only --tar-only xen
  mkdir source
  tar --strip-components=1 -C source -xf xen_*.orig.tar.*
  cd source/xen || return
  export XEN_TARGET_ARCH=arm64 CROSS_COMPILE=$CROSS
  make arm64_defconfig
  cat "$LAB_RESOURCES/xen.config" >>.config
  make olddefconfig
  for option in IOREQ_SERVER STATIC_MEMORY DOM0LESS_BOOT; do
    grep -qx "CONFIG_$option=y" .config || { echo "the configuration lost CONFIG_$option" && return 1; }
  done
  make -j"$(nproc)"
  cp xen ../../xen
  cd ../..
  rm -rf source xen_*
}
