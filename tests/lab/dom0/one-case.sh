#!/bin/sh
# one-case.sh CASE: dom0's part of a case, with the functions that cases are written in.
set -eu
export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/lab/bin
CASE=$1
for part in base daemon guests disk data grants toolstack back-ends; do
  # shellcheck source=/dev/null
  . "/lab/$part.sh"
done
# shellcheck source=/dev/null
. "/lab/cases/$CASE"
dom0_part
no_complaints
