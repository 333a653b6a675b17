# shellcheck shell=bash
# ./test's way of counting: a check is a command, a test program of cargo's, or a case of the lab.

CHECKS_PASSED=0
CHECKS_FAILED=0
SKIPPED=()

skip() { # WHAT AND WHY
  SKIPPED+=("$*")
  say "skipped: $*"
}

# check NAME COMMAND…: counts as one.
check() {
  local name=$1 started=$SECONDS
  shift
  say "$name"
  if "$@" </dev/null; then
    CHECKS_PASSED=$((CHECKS_PASSED + 1))
    say "$name: ok, $((SECONDS - started)) s"
  else
    CHECKS_FAILED=$((CHECKS_FAILED + 1))
    say "$name: FAILED"
  fi
}

# count_tests NAME COMMAND…: a command that prints results as cargo's test programs and the lab do.
# A failure without a failed test (it did not build, it crashed) counts as one, and so does a run of nothing at all: a
# filter that matches no test any more is no success.
count_tests() {
  local name=$1 started=$SECONDS status=0 passed failed line
  shift
  say "$name"
  "$@" </dev/null 2>&1 | tee "$TEMPORARY/results" || status=$?
  passed=$(sum_of passed)
  failed=$(sum_of failed)
  # what the command itself has left out
  while read -r line; do SKIPPED+=("$line"); done < <(sed -nE 's/^\[ *[0-9]+ s\] skipped: //p' "$TEMPORARY/results")
  [ "$status" = 0 ] && [ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || failed=1
  CHECKS_PASSED=$((CHECKS_PASSED + passed))
  CHECKS_FAILED=$((CHECKS_FAILED + failed))
  say "$name: $passed passed, $failed failed, $((SECONDS - started)) s"
}

# judge_skipped [FILE]: tells again what was skipped. With a FILE, what does not begin as one of its lines says has failed.
judge_skipped() {
  local skipped
  for skipped in "${SKIPPED[@]}"; do
    if [ -z "${1:-}" ] || may_be_skipped "$skipped" "$1"; then
      echo "skipped: $skipped"
    else
      echo "FAILED, for it may not be skipped: $skipped"
      CHECKS_FAILED=$((CHECKS_FAILED + 1))
    fi
  done
}
may_be_skipped() { # TEXT FILE
  local allowed
  while read -r allowed; do
    case $allowed in '' | '#'*) continue ;; esac
    [[ $1 != "$allowed"* ]] || return 0
  done <"$2"
  return 1
}

sum_of() { # of "test result: ok. 5 passed; 0 failed; …" and "5 passed, 0 failed"
  sed -nE "s/^(test result: [A-Za-z]+\. )?([0-9]+ passed[;,] )?([0-9]+) $1([;,].*)?\$/\3/p" "$TEMPORARY/results" |
    awk '{ n += $1 } END { print n + 0 }'
}
