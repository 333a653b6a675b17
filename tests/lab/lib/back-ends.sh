# shellcheck shell=bash
# vhost-user back ends that others wrote, unmodified: which, in which versions, and how they are built. Those of the
# crate registry are built here, for this machine and for dom0; QEMU's storage daemon is Debian's.

declare -A BACK_ENDS=(
  [virtiofsd]=1.14.0
  [vhost-device-rng]=0.1.0
  [vhost-device-vsock]=0.3.0
  [vhost-device-scsi]=0.1.0
  [vhost-device-console]=0.1.0
  [vhost-device-sound]=0.3.0
)
BACK_END_PACKAGES=(qemu-system-common libcap-ng-dev libseccomp-dev gcc libc6-dev) # what the first brings; what virtiofsd links

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
