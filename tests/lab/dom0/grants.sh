# shellcheck shell=sh
# Grants as Xen knows them. Debug key g prints the grant table of each domain that still exists, with a line for
# each entry that another domain has mapped.

grants_list() { # into $WORK/grants
  xl dmesg -c >/dev/null
  xl debug-keys g
  within 5 grants_printed || fail "Xen printed no grant tables"
}
grants_printed() {
  xl dmesg >"$WORK/grants"
  grep -q 'gnttab_usage_print_all \] done' "$WORK/grants"
}

# grants_of DOMID: how many of its grants are mapped by others; dom0's own xenstored and xenconsoled have one each.
grants_of() {
  grants_list
  awk -v want="d$1" '
    /grant-table for remote/ { here = 0; for (i = 1; i <= NF; i++) if ($i == want) here = 1 }
    here && /\[0x/ { count++ }
    END { print count + 0 }' "$WORK/grants"
}
