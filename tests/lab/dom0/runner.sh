#!/bin/sh
# runner.sh CASE…: runs cases one after the other, each in a session of its own and bounded in time, and
# reports on standard output, which is the machine's console. Lines that begin with "LAB: " are read by the host:
#   ready SECONDS | start CASE | step CASE TEXT | note CASE TEXT | ok CASE SECONDS | FAILED CASE SECONDS REASON | log CASE TEXT | end

now() { cut -d' ' -f1 /proc/uptime; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
header() { sed -n "s/^# $2: *//p" "/lab/cases/$1" | head -n 1; }

# what a failed case leaves for whoever looks for the reason
show_logs() {
  for log in /tmp/case/out /var/log/xen/console/guest-*.log /tmp/case/daemon.log /tmp/case/back-end.log /var/log/xen/xl-*.log; do
    [ -s "$log" ] || continue
    echo "LAB: log $1 ---- $log"
    tail -n 80 "$log" | tr -d '\r' | cut -c1-400 | sed "s/^/LAB: log $1 /"
  done
  echo "LAB: log $1 ---- dmesg"
  dmesg | tail -n 15 | sed "s/^/LAB: log $1 /"
}

domains() { xl list 2>/dev/null | awk 'NR > 1 && $2 != 0 { print $2 }'; }
given=$(domains | tr '\n' ' ') # by Xen itself, at its start

# whatever a case left behind must not reach the next one
tidy() {
  for pid in /tmp/case/*.pid; do
    [ -e "$pid" ] && kill -9 "$(cat "$pid")" 2>/dev/null
  done
  domains | while read -r domain; do
    case " $given " in *" $domain "*) continue ;; esac
    timeout 30 xl destroy "$domain" >/dev/null 2>&1
  done
  umount /mnt 2>/dev/null
  for key in virtio virtio_disk vbd; do xenstore-rm "/local/domain/0/backend/$key" 2>/dev/null; done
  rm -rf /tmp/case /var/log/xen/console/guest-*.log /var/log/xen/xl-*.log
}

soak=$(sed -n 's/.*lab\.soak=\([0-9]*\).*/\1/p' /proc/cmdline)
export SOAK="$soak"

echo "LAB: ready $(now)"
for case; do
  limit=$(($(header "$case" seconds)))
  tidy
  mkdir -p /tmp/case
  echo "LAB: start $case"
  began=$(now)
  setsid sh /lab/one-case.sh "$case" >/tmp/case/out 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null && [ "$(since "$began" | cut -d. -f1)" -lt "$limit" ]; do sleep 0.2; done
  if kill -0 "$pid" 2>/dev/null; then
    kill -9 -- "-$pid"
    verdict="FAILED $case $(since "$began") not finished after $limit s"
  elif wait "$pid"; then
    verdict="ok $case $(since "$began")"
  else
    reason=$(sed -n 's/^FAIL: //p' /tmp/case/out | head -n 1)
    verdict="FAILED $case $(since "$began") ${reason:-a command of the case failed}"
  fi
  case $verdict in FAILED*) show_logs "$case" ;; esac
  echo "LAB: $verdict"
done
tidy
echo "LAB: end"
