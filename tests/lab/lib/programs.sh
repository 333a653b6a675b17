# shellcheck shell=bash
# Our own programs for guests, and for dom0: what no shell can do there. Each is one C file in guest/programs, which says at
# its top what it does; what two of them share is back-end.h.

# need_programs: sets PROGRAMS, a directory of static arm64 programs.
need_programs() {
  host_need "${LAB_HOST_PACKAGES[@]}"
  artefact programs "$(content_key "$(cat "$LAB_DIR"/guest/programs/*)" "$(declare -f build_programs)")" "" build_programs
  PROGRAMS=$ARTEFACT/bin
}

build_programs() {
  local source
  mkdir bin
  for source in "$LAB_DIR"/guest/programs/*.c; do
    "${CROSS}gcc" -std=gnu17 -O2 -Wall -Wextra -Werror -static -s -o "bin/$(basename "$source" .c)" "$source"
  done
}
