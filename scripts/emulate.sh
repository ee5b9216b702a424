#!/bin/sh
# emulate.sh: start the ARM binaries of dist/ under qemu-user; each must run the tour to its end and balance its ledger.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT

tour() { # tour NAME QEMU...
  name=$1
  shift
  command -v "$1" >/dev/null || return 0 # deps.sh has said so
  if timeout 300 "$@" "dist/gatepost-linux-$name" demo --once >"$out" 2>&1; then
    echo "$name: $(tail -n 1 "$out")"
  else
    echo "$name: demo --once failed ($?)"
    cat "$out"
    exit 1
  fi
}

tour armv6 qemu-arm-static -cpu arm1176 # the first Raspberry Pi's processor
tour arm64 qemu-aarch64-static
