# shellcheck shell=bash
# Boots a machine for the cases that want the same one and judges them by what dom0 says on the console
# (dom0/runner.sh lists the words).

BOOT_SECONDS=180 # from QEMU's start to dom0's "ready"; five to fifteen are usual
SLACK_SECONDS=60 # what a case may take on top of its own bound, logs included

PASSED=0
FAILED=0
SUITE_CASE="xen-suite"
LAST_NOTES=() # what the last boot's cases noted, "CASE TEXT"

# prepare KERNELS XENS: everything that cases with these kernels and hypervisors need, the suite apart.
prepare() {
  local flavour
  need_userland
  need_xen_dm
  need_programs
  for flavour in $1; do need_kernel "$flavour"; done
  for flavour in $2; do need_xen "$flavour"; done
}

# need_tools [TOOL…]: sets TOOL_ARCHIVES, cpio archives for dom0's root.
need_tools() {
  local tool
  TOOL_ARCHIVES=()
  for tool; do
    "need_${tool//-/_}"
    TOOL_ARCHIVES+=("$ARTEFACT/archive.cpio")
  done
}

# run_cases CASE…: runs them, a boot for each machine that they want, and counts in PASSED and FAILED.
run_cases() {
  local machine name wanted machines
  mapfile -t machines < <(case_boots "$@")
  prepare "$(printf '%s\n' "${machines[@]}" | cut -d' ' -f1 | sort -u)" \
    "$(printf '%s\n' "${machines[@]}" | cut -d' ' -f2 | sort -u)"
  SUITE=
  [[ " $* " != *" $SUITE_CASE "* ]] || need_suite
  # shellcheck disable=SC2046 # a word for each
  need_tools $(case_tools "$@")
  temporary_directory
  for machine in "${machines[@]}"; do
    wanted=()
    for name; do [ "$(case_boot "$name")" != "$machine" ] || wanted+=("$name"); done
    # A case that takes the whole machine down must not take the others with it: they get another boot.
    while [ ${#wanted[@]} -gt 0 ]; do
      # shellcheck disable=SC2086 # its five words
      boot $machine "${wanted[@]}"
      wanted=("${NOT_RUN[@]}")
    done
  done
}

# boot KERNEL XEN VCPUS MEMORY MACHINE CASE…: one boot. Sets NOT_RUN to the cases that had no turn because the machine
# ended early.
boot() {
  local kernel=$1 xen=$2 vcpus=$3 memory=$4 board=$5 joined log line='' piece output qemu status word name rest
  local current='' limit
  shift 5
  NOT_RUN=("$@")
  joined=$*
  need_xen "$xen"
  need_kernel "$kernel"
  # shellcheck disable=SC2046 # a word for each
  need_lab_back_ends $(case_back_ends "$@")
  make_initrd "$TEMPORARY"
  mkdir -p "$LAB_CACHE/logs"
  log=$LAB_CACHE/logs/run-$kernel-$(date +%Y%m%d-%H%M%S)-$$.log
  machine_command "$TEMPORARY" "$INITRD" "$vcpus" "$memory" "$board" "lab.soak=$LAB_SOAK_SECONDS lab.cases=${joined// /,}"
  say "booting: Xen ($xen), dom0 ($kernel kernel), $vcpus vCPU(s), $memory MiB, $board; for $# case(s)"
  mkfifo "$TEMPORARY/console"
  "${MACHINE_COMMAND[@]}" -serial stdio </dev/null >"$TEMPORARY/console" 2>&1 &
  qemu=$!
  CLEAN_PIDS+=("$qemu")
  exec {output}<"$TEMPORARY/console"
  rm "$TEMPORARY/console"

  limit=$((SECONDS + BOOT_SECONDS))
  while :; do
    if IFS= read -r -t 1 piece <&"$output"; then
      line=$line${piece//$'\r'/}
      printf '%s\n' "$line" >>"$log"
      if [[ $line == *"LAB: "* ]]; then
        read -r word name rest <<<"${line#*LAB: }"
        console_word "$word" "$name" "$rest"
      fi
      line=
    else
      status=$?
      line=$line$piece # the time was over in the middle of a line
      [ "$status" -gt 128 ] || break
    fi
    if [ "$SECONDS" -ge "$limit" ]; then
      kill -KILL "$qemu"
      break
    fi
  done
  exec {output}<&-
  wait "$qemu" 2>/dev/null || true
  machine_ended "$log"
}

# console_word WORD CASE TEXT: boot's reaction to one word of dom0's; shares boot's variables.
console_word() {
  case $1 in
  ready)
    say "dom0 is up, $2 s after its kernel started"
    limit=$((SECONDS + SLACK_SECONDS))
    ;;
  start)
    current=$2
    LAST_LOG=()
    limit=$((SECONDS + $(case_seconds "$current") + SLACK_SECONDS))
    ;;
  step) [ -z "${STORY:-}" ] || say "$3" ;;
  note) LAST_NOTES+=("$2 $3") ;;
  log) LAST_LOG+=("$3") ;;
  ok)
    PASSED=$((PASSED + 1))
    case_ended "$2"
    echo "$2 ok $3 s$(notes_of "$2")"
    ;;
  FAILED)
    case_ended "$2"
    case_failed "$2" "after ${3%% *} s: ${3#* }" "$log"
    ;;
  end) limit=$((SECONDS + 30)) ;; # to power off
  esac
}

notes_of() {
  local note
  for note in "${LAST_NOTES[@]}"; do
    [ "${note%% *}" != "$1" ] || printf '; %s' "${note#* }"
  done
}

case_ended() { # it had its turn
  local name left=()
  for name in "${NOT_RUN[@]}"; do [ "$name" = "$1" ] || left+=("$name"); done
  NOT_RUN=("${left[@]}")
  current=
  limit=$((SECONDS + SLACK_SECONDS))
}

case_failed() { # CASE REASON LOG
  FAILED=$((FAILED + 1))
  echo "$1 FAILED $2"
  printf '%s\n' "${LAST_LOG[@]}" | last_lines 15
  echo "    the whole console: $3"
  LAST_LOG=()
}

# last_lines N: of each section ("---- NAME"), indented, N lines are enough for most faults.
last_lines() {
  awk -v n="$1" '
    function flush(i) { for (i = (count > n ? count - n : 0); i < count; i++) print "    " line[i]; count = 0 }
    /^---- / { flush(); print "    " $0; next }
    $0 != "" { line[count++] = $0 }
    END { flush() }'
}

# machine_ended LOG: the console closed. Cases without a result failed or, if they had not begun, get
# another boot; but a machine that never got to its first case is not started again.
machine_ended() {
  local name
  [ ${#NOT_RUN[@]} -gt 0 ] || return 0
  mapfile -t LAST_LOG < <(tail -n 25 "$1")
  if [ -n "$current" ]; then
    name=$current
    case_ended "$name"
    case_failed "$name" "the machine ended or hung in the middle of it" "$1"
  else
    for name in "${NOT_RUN[@]}"; do case_failed "$name" "the machine did not come up" "$1"; done
    NOT_RUN=()
  fi
}

# lab_shell KERNEL: a shell in dom0 on this terminal.
lab_shell() {
  [[ " ${KERNELS[*]} " == *" $1 "* ]] || die "there is no kernel '$1'; there are: ${KERNELS[*]}"
  prepare "$1" lab
  SUITE=
  need_tools
  need_lab_back_ends
  temporary_directory
  make_initrd "$TEMPORARY"
  machine_command "$TEMPORARY" "$INITRD" 1 2048 plain "lab.soak=$LAB_SOAK_SECONDS"
  say "booting; Ctrl-a x ends the emulator, Ctrl-a c is its own command line"
  "${MACHINE_COMMAND[@]}" -serial mon:stdio
}
