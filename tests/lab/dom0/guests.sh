# shellcheck shell=sh
# Guests: configuration, creation, their console, their end.
# A guest runs guest_part of the case in its name's file; what it says stands in xenconsoled's log.

# guest_config NAME [LINE…]: writes the guest's xl configuration, LINEs added; a LINE goes before what stands here.
guest_config() {
  config=$WORK/$1.cfg
  cat >"$config" <<X
name = "$1"
kernel = "/lab/guest/Image"
ramdisk = "/lab/guest/initrd"
memory = 256
vcpus = 1
extra = "console=hvc0 loglevel=4 rdinit=/init lab.case=$CASE lab.name=$1"
on_crash = "preserve"
on_reboot = "destroy"
X
  shift
  for line; do echo "$line" >>"$config"; done
}

# disk_line IMAGE ACCESS GRANTS: one virtio disk.
disk_line() { disks_line "xvda:$2:$3:$1"; }

# disks_line VDEV:ACCESS:GRANTS:IMAGE…: virtio disks; "target" has to come last.
disks_line() {
  list=
  for disk; do
    list="$list$(IFS=:
      # shellcheck disable=SC2086 # four words
      set -- $disk
      printf '"%s", ' "backend=0,vdev=$1,access=$2,specification=virtio,backendtype=standalone,format=raw,grant_usage=$3,target=$4")"
  done
  echo "disk = [ ${list%, } ]"
}

# virtio_line TYPE…, plain_virtio_line TYPE…: other virtio devices, such as device4, with grants or with plain addresses.
virtio_line() { virtio_lines 1 "$@"; }
plain_virtio_line() { virtio_lines 0 "$@"; }
virtio_lines() { # GRANTS TYPE…
  grants=$1
  shift
  list=
  for type; do list="$list\"backend=0,type=virtio,$type,transport=mmio,grant_usage=$grants\", "; done
  echo "virtio = [ ${list%, } ]"
}

# guest_create NAME [OPTION…]: has to succeed. Sets GUEST to its domain id.
guest_create() {
  name=$1
  shift
  began=$(now)
  xl create "$@" "$WORK/$name.cfg" >"$WORK/xl-create.log" 2>&1 || {
    cat "$WORK/xl-create.log"
    fail "xl create failed: $(first_error "$WORK/xl-create.log")"
  }
  GUEST=$(xl domid "$name")
  echo "$name is domain $GUEST, created in $(since "$began") s"
}

first_error() { grep -m 1 -i error "$1" || tail -n 1 "$1"; }

console_of() { echo "/var/log/xen/console/guest-$1.log"; }

# guest_says NAME WORD: the rest of the guest's last line "LAB-GUEST: WORD …".
guest_says() { tr -d '\r' <"$(console_of "$1")" | sed -nE "s/.*LAB-GUEST: $2( |\$) *//p" | tail -n 1; }
guest_said() { grep -qE "LAB-GUEST: $2([[:space:]]|\$)" "$(console_of "$1")" 2>/dev/null; }

# guest_do NAME WORD: what the guest's wait_for waits for; a line on its console.
guest_do() {
  terminal=$(xenstore-read "/local/domain/$(xl domid "$1")/console/tty") || fail "$1 has no console"
  echo "$2" >"$terminal"
}

# guest_wait NAME WORD SECONDS: until the guest has said WORD; its own failure or a panic ends the wait.
guest_wait() {
  within "$3" guest_said_or_failed "$1" "$2" || fail "the guest has not said '$2' after $3 s"
  guest_said "$1" "$2" || fail "in the guest: $(guest_says "$1" failed)$(grep -m 1 'Kernel panic' "$(console_of "$1")")"
}
guest_said_or_failed() {
  guest_said "$1" "$2" || guest_said "$1" failed || grep -q 'Kernel panic' "$(console_of "$1")" 2>/dev/null
}

# guest_destroy NAME: has to succeed without a complaint, and the domain has to be gone. Sets TOOK, in seconds.
guest_destroy() {
  domain=$(xl domid "$1") || fail "there is no guest $1"
  began=$(now)
  xl destroy "$1" >"$WORK/xl-destroy.log" 2>&1 || {
    cat "$WORK/xl-destroy.log"
    fail "xl destroy failed: $(first_error "$WORK/xl-destroy.log")"
  }
  TOOK=$(since "$began")
  if grep -iE 'timed out|timeout|unable|fail|error' "$WORK/xl-destroy.log"; then
    fail "xl destroy complained: $(head -n 1 "$WORK/xl-destroy.log")"
  fi
  within 10 domain_gone "$domain" || fail "domain $domain is a zombie: $(xl list | tail -n 1)"
}
domain_gone() { ! xl list | awk -v id="$1" 'NR > 1 && $2 == id { found = 1 } END { exit !found }'; }

# no_complaints: no guest may have said any of these. A case whose guests have reason to say some sets others.
COMPLAINTS='still in use by backend|I/O error|Kernel panic|BUG:|Oops|LAB-GUEST: failed'
no_complaints() {
  for log in /var/log/xen/console/guest-*.log; do
    [ -e "$log" ] || continue
    if grep -E "$COMPLAINTS" "$log"; then
      fail "complaints in a guest's log"
    fi
  done
}
