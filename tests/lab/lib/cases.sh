# shellcheck shell=bash
# What the case files say about themselves: the first line is their summary, then come
#   # kernel: lab|debian     which kernel dom0 and guest run
#   # xen: lab|debian        (optional) which hypervisor, instead of the lab's
#   # vcpus: N               (optional) dom0's virtual processors, instead of one; the machine has one processor
#   # memory: MIB            (optional) the machine's memory, instead of 2048
#   # machine: direct-mapped (optional) Xen starts a second domain beside dom0 (machine.sh)
#   # tools: NAME…           (optional) what dom0 has beside what every case finds there: qemu-img, i2c-stub (NAME.sh)
#   # seconds: N             how long the case may take inside dom0; "soak" in it is LAB_SOAK_SECONDS
#   # back-ends: NAME…      (optional) vhost-user back ends of others that dom0 has to have (back-ends.sh)
#   # needs: FILE            (optional) it is left out where the project has no such file
#   # extra: yes             (optional) not one of "all"
# Cases with the same kernel, xen, vcpus, memory and machine share a boot.

KERNELS=(lab debian)
XENS=(lab debian)
LAB_SOAK_SECONDS=${LAB_SOAK_SECONDS:-300} # how long the case soak loads its guests

case_file() { echo "$LAB_DIR/cases/$1"; }
case_header() { sed -n "s/^# $2: *//p" "$(case_file "$1")" | head -n 1; }
case_summary() { # the first sentence of its header
  sed -n '/^# kernel: /q;s/^# //p' "$(case_file "$1")" | tr '\n' ' ' | sed 's/\. .*/./;s/ *$//'
}
case_seconds() { # the bound; an arithmetic expression in the header
  local soak=$LAB_SOAK_SECONDS
  echo $(($(case_header "$1" seconds)))
}
case_boot() { # "KERNEL XEN VCPUS MEMORY MACHINE": what a case runs on
  local kernel xen vcpus memory machine
  kernel=$(case_header "$1" kernel)
  xen=$(case_header "$1" xen)
  vcpus=$(case_header "$1" vcpus)
  memory=$(case_header "$1" memory)
  machine=$(case_header "$1" machine)
  echo "$kernel ${xen:-lab} ${vcpus:-1} ${memory:-2048} ${machine:-plain}"
}
case_boots() { # CASE…: the different machines, the one of most cases first
  local name
  for name; do case_boot "$name"; done | sort | uniq -c | sort -k 1,1nr -k 2 | sed 's/^ *[0-9]* //'
}
case_back_ends() { case_words back-ends "$@"; } # CASE…: the back ends that they want, each once
case_tools() { case_words tools "$@"; }         # and the tools
case_words() {                                  # FIELD CASE…
  local name field=$1
  shift
  for name; do case_header "$name" "$field"; done | tr ' ' '\n' | sort -u
}
case_names() { # every case, by name
  local file
  for file in "$LAB_DIR"/cases/*; do basename "$file"; done
}

list_cases() {
  local name extra
  for name in $(case_names); do
    extra=
    [ "$(case_header "$name" extra)" != yes ] || extra=" (not one of 'all')"
    printf '%-20s %-7s %s\n' "$name" "$(case_header "$name" kernel)" "$(case_summary "$name")$extra"
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
      say "skipped: lab case $name: there is no $needs"
    else
      CASES+=("$name")
    fi
  done
}
