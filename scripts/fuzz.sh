#!/bin/sh
# fuzz.sh [DIR...]: run every fuzz target found for FUZZTIME (5s), one after the other.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go} FUZZTIME=${FUZZTIME:-5s}
workers=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
out=$(mktemp)
trap 'rm -f "$out"' EXIT

once() { $GO test -run '^$' -fuzz "^$2\$" -fuzztime "$FUZZTIME" -parallel "$workers" "$1" >"$out" 2>&1; }

# A fuzz target that is still busy when its time is up makes Go's fuzzer fail with this line, and with no input
# (golang.org/issue/75804, mended in Go 1.27). Such a run is repeated once.
out_of_time() { grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out"; }

[ $# -gt 0 ] || set -- $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -rn1 dirname | sort -u)
targets=0
for dir in "$@"; do
  names=$($GO test -list '^Fuzz' "$dir") # a package that does not build ends the script here
  for name in $(echo "$names" | grep '^Fuzz'); do
    printf '%-32s %s\n' "$dir" "$name"
    if ! once "$dir" "$name" && ! { out_of_time && once "$dir" "$name"; }; then
      cat "$out"
      exit 1
    fi
    targets=$((targets + 1))
  done
done
echo "$targets fuzz targets, $FUZZTIME each: nothing found"
