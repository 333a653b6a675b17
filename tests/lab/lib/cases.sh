# shellcheck shell=bash
# What the case files say about themselves: the first line is their summary, then come
#   # kernel: lab|debian     which kernel dom0 and guest run; cases of one kernel share a boot
#   # seconds: N             how long the case may take inside dom0
#   # needs: FILE            (optional) it is left out where the project has no such file
#   # extra: yes             (optional) not one of "all"

KERNELS=(lab debian)

case_file() { echo "$LAB_DIR/cases/$1"; }
case_header() { sed -n "s/^# $2: *//p" "$(case_file "$1")" | head -n 1; }
case_summary() { sed -n '1s/^# //p' "$(case_file "$1")"; }
case_names() { # every case, by name
  local file
  for file in "$LAB_DIR"/cases/*; do basename "$file"; done
}

list_cases() {
  local name
  for name in $(case_names); do
    printf '%-20s %-7s %s\n' "$name" "$(case_header "$name" kernel)" "$(case_summary "$name")"
  done
}

# choose_cases NAME…|all: sets CASES.
choose_cases() {
  local name
  [ $# -gt 0 ] || die "which cases? 'lab run all', or names out of: $(case_names | tr '\n' ' ')"
  CASES=()
  for name; do
    if [ "$name" = all ]; then
      choose_all
    elif [[ $name =~ ^[a-z0-9-]+$ ]] && [ -f "$(case_file "$name")" ]; then
      CASES+=("$name")
    else
      die "there is no case '$name'; there are: $(case_names | tr '\n' ' ')"
    fi
  done
}
choose_all() {
  local name needs
  for name in $(case_names); do
    [ "$(case_header "$name" extra)" != yes ] || continue
    needs=$(case_header "$name" needs)
    if [ -n "$needs" ] && [ ! -e "$PROJECT/$needs" ]; then
      say "$name left out: there is no $needs"
    else
      CASES+=("$name")
    fi
  done
}
