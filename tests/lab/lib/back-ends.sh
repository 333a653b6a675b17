# shellcheck shell=bash
# vhost-user back ends that others wrote, unmodified: which, in which versions, and how they are built. Those of the
# crate registry are built here, for this machine and as static programs for dom0; QEMU's storage daemon and DPDK are
# Debian's.

declare -A BACK_ENDS=(
  [virtiofsd]=1.14.0
  [vhost-device-rng]=0.1.0
  [vhost-device-vsock]=0.3.0
  [vhost-device-scsi]=0.1.0
  [vhost-device-console]=0.1.0
  [vhost-device-sound]=0.3.0
)
# Those that are tried on real Xen alone: they need what its dom0's kernel simulates.
declare -A LAB_BACK_ENDS=(
  [vhost-device-input]=0.1.0
  [vhost-device-gpio]=0.1.0
  [vhost-device-i2c]=0.1.0
)
GPIO_HOST_PACKAGES=(pkg-config libclang1-14 libclang-common-14-dev) # its bindings are made when it is built
# qemu-storage-daemon, dpdk-testpmd; what virtiofsd links
BACK_END_PACKAGES=(qemu-system-common dpdk-dev libcap-ng-dev libseccomp-dev gcc libc6-dev)

back_end_options() { # NAME: what cargo is to be told beside its version
  case $1 in vhost-device-sound) echo --no-default-features ;; esac # its null back end alone: no sound libraries
}

# need_back_end NAME: sets ARTEFACT to a directory with the program, built for this machine.
need_back_end() {
  artefact "$1" "$(content_key "${BACK_ENDS[$1]}" "$(declare -f build_back_end back_end_options)")" "about a minute" \
    build_back_end "$1" "${BACK_ENDS[$1]}"
}

# What they share is compiled once: they have one target directory until all are built.
BACK_END_TARGET=$LAB_CACHE/target-back-ends
build_back_end() { # NAME VERSION
  # shellcheck disable=SC2046 # no word or one
  CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR=$BACK_END_TARGET \
    cargo install --locked --root . $(back_end_options "$1") "$1@$2"
  strip -o "$1" "bin/$1"
  rm -r bin
}

# need_lab_back_ends [NAME…]: sets BACK_END_ARCHIVES, cpio archives for dom0's root with /lab/back-ends/NAME. NAME+xen is
# the same back end built with its feature "xen": it maps the guest's memory itself.
need_lab_back_ends() {
  local name version
  BACK_END_ARCHIVES=()
  [ $# = 0 ] || need_rust_aarch64
  for name; do
    if [ "$name" = qemu-storage-daemon ]; then
      artefact "$name-aarch64" "$(content_key "$LAB_SUITE" "${STORAGE_DAEMON_PACKAGES[*]}" \
        "$(declare -f fetch_storage_daemon copy_with_libraries cpio_of)")" "15 MB to download" fetch_storage_daemon
    elif [ "$name" = dpdk-testpmd ]; then
      artefact "$name-aarch64" "$(content_key "$LAB_SUITE" "${TESTPMD_PACKAGES[*]}" \
        "$(declare -f fetch_testpmd copy_with_libraries cpio_of)")" "20 MB to download" fetch_testpmd
    elif [[ $name = *+xen ]]; then
      artefact "$name-aarch64" "$(content_key "${BACK_ENDS[${name%+xen}]}" "${RUST_AARCH64_ENV[@]}" \
        "$(declare -f build_xen_back_end)")" "one to two minutes" \
        build_xen_back_end "${name%+xen}" "${BACK_ENDS[${name%+xen}]}" "${RUST_AARCH64_ENV[@]}"
    else
      [ "$name" != vhost-device-gpio ] || host_need "${GPIO_HOST_PACKAGES[@]}"
      version=${BACK_ENDS[$name]:-${LAB_BACK_ENDS[$name]}}
      artefact "$name-aarch64" "$(content_key "$version" "${RUST_AARCH64_ENV[@]}" \
        "$(declare -f build_lab_back_end back_end_options fetch_static_libraries)")" "one to two minutes" \
        build_lab_back_end "$name" "$version" "${RUST_AARCH64_ENV[@]}"
    fi
    BACK_END_ARCHIVES+=("$ARTEFACT/archive.cpio")
  done
}

build_lab_back_end() { # NAME VERSION SETTING…
  local name=$1 version=$2 settings libraries
  shift 2
  settings=("$@" CARGO_PROFILE_RELEASE_DEBUG=0 "CARGO_TARGET_DIR=$BACK_END_TARGET-aarch64")
  case $name in
  virtiofsd)
    fetch_static_libraries libseccomp-dev libcap-ng-dev
    settings+=(LIBSECCOMP_LINK_TYPE=static "LIBSECCOMP_LIB_PATH=$libraries"
      LIBCAPNG_LINK_TYPE=static "LIBCAPNG_LIB_PATH=$libraries")
    ;;
  vhost-device-gpio)
    fetch_static_libraries libgpiod-dev
    settings+=(PKG_CONFIG_ALLOW_CROSS=1 "PKG_CONFIG_SYSROOT_DIR=$PWD/packages"
      "PKG_CONFIG_LIBDIR_aarch64_unknown_linux_gnu=$libraries/pkgconfig"
      "BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu=-I$PWD/packages/usr/include -I/usr/aarch64-linux-gnu/include")
    ;;
  esac
  # shellcheck disable=SC2046 # no word or one
  env "${settings[@]}" cargo install --locked --root . $(back_end_options "$name") "$name@$version"
  mkdir -p root/lab/back-ends
  "${CROSS}strip" -o "root/lab/back-ends/$name" "bin/$name"
  cpio_of root >archive.cpio
  rm -rf bin root packages
}

build_xen_back_end() { # NAME VERSION SETTING…
  local name=$1 version=$2
  shift 2
  env "$@" CARGO_PROFILE_RELEASE_DEBUG=0 "CARGO_TARGET_DIR=$PWD/target" \
    cargo install --locked --root . --features xen "$name@$version"
  mkdir -p root/lab/back-ends
  "${CROSS}strip" -o "root/lab/back-ends/$name+xen" "bin/$name"
  cpio_of root >archive.cpio
  rm -rf bin root target
}

# fetch_static_libraries PACKAGE…: into packages, of the release whose C library the linker has, or of what was brought
# to it from later ones; sets libraries to where they are.
fetch_static_libraries() {
  local release package newest=()
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  apt_state back-ends arm64 "deb $(debian_mirror Debian) $release main" \
    "deb $(debian_mirror Debian) $release-backports main"
  for package; do
    newest+=("$package=$(apt_in back-ends apt-cache madison "$package" | awk '{ print $3; exit }')")
  done
  fetch_packages back-ends packages "${newest[@]}"
  find packages -name '*.so*' -delete
  libraries=$PWD/packages/usr/lib/aarch64-linux-gnu
}

STORAGE_DAEMON_PACKAGES=(qemu-utils libaio1t64 libfuse3-4 libglib2.0-0t64 libgmp10 libgnutls30t64 libhogweed6t64
  libnettle8t64 libnuma1 libselinux1 liburing2 libzstd1 zlib1g libpcre2-8-0 libp11-kit0 libidn2-0 libunistring5
  libtasn1-6 libffi8 libatomic1 libgcc-s1 libc6)
fetch_storage_daemon() { # its module for each image format is built in
  apt_state userland arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  fetch_packages userland packages "${STORAGE_DAEMON_PACKAGES[@]}"
  mkdir -p root/usr/bin root/usr/lib/aarch64-linux-gnu root/lab/back-ends
  copy_with_libraries packages root usr/bin/qemu-storage-daemon
  mv root/usr/bin/qemu-storage-daemon root/lab/back-ends/
  cpio_of root >archive.cpio
  rm -rf packages root
}

TESTPMD_PACKAGES=(dpdk-dev libnuma1 libfdt1 libjansson4 libbsd0 libmd0 libelf1t64 libpcap0.8t64 libdbus-1-3 libsystemd0
  libcap2 libibverbs1 ibverbs-providers libnl-3-200 libnl-route-3-200 zlib1g libzstd1 libc6)
fetch_testpmd() { # with the two drivers that it loads: of vhost-user ports, and of its buffers
  local driver drivers
  apt_state userland arm64 "deb $(debian_mirror Debian) $LAB_SUITE main"
  # a package for each of DPDK's libraries, some 200
  mapfile -t drivers < <(apt_in userland apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests \
    --no-conflicts --no-breaks --no-replaces --no-enhances dpdk-dev | grep '^librte-' | grep -v -e -meta- | sort -u)
  fetch_packages userland packages "${TESTPMD_PACKAGES[@]}" "${drivers[@]}"
  mkdir -p root/usr/bin root/usr/lib/aarch64-linux-gnu root/lab/back-ends/dpdk
  copy_with_libraries packages root usr/bin/dpdk-testpmd
  mv root/usr/bin/dpdk-testpmd root/lab/back-ends/
  for driver in net_vhost mempool_ring; do
    driver=$(basename packages/usr/lib/aarch64-linux-gnu/librte_$driver.so.??)
    copy_with_libraries packages root "usr/lib/aarch64-linux-gnu/$driver"
    ln -s "/usr/lib/aarch64-linux-gnu/$driver" "root/lab/back-ends/dpdk/${driver%.*}" # it looks for names in .so
  done
  cpio_of root >archive.cpio
  rm -rf packages root
}
