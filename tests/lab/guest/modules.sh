#!/bin/sh
# Loads the modules of the kernel, if it has any; Xen's own are dom0's.
[ ! -e /modules/order ] || while read -r module; do
  case $module in xen-* | xenfs*) ;; *) insmod "/modules/$module" ;; esac
done </modules/order
