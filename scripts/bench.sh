#!/bin/sh
# bench.sh [WORD]: run the benchmarks that docs/benchmarks.md names in its tables (those whose row holds WORD) COUNT (5)
# times, and set the median of each metric beside its bound. Ends non-zero if one is not kept.
#
# A row is: | what | `./package BenchmarkName/sub` | `metric` | >= 0.9 | last figure |
# The benchmark itself measures its floor in the same run and reports the ratio (testing.B.ReportMetric).
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go} COUNT=${COUNT:-5}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
: >"$dir/values"

# rows: package, benchmark, metric, bound ("<= 8192"), what
awk -F ' *[|] *' -v word="${1:-}" 'index($0, word) && $3 ~ /^`\.[^`]* Benchmark/ {
  gsub(/`/, ""); split($3, b, " "); gsub("≥", ">=", $5); gsub("≤", "<=", $5)
  print b[1] "\t" b[2] "\t" $4 "\t" $5 "\t" $2
}' docs/benchmarks.md >"$dir/rows"
[ -s "$dir/rows" ] || { echo "docs/benchmarks.md has no such row"; exit 1; }

cut -f 1 "$dir/rows" | sort -u | while read -r pkg; do
  [ -d "$pkg" ] || continue
  names=$(awk -F '\t' -v p="$pkg" '$1 == p { sub("/.*", "", $2); print $2 }' "$dir/rows" | sort -u | paste -sd '|' -)
  echo "$pkg: $names" >&2
  $GO test -run '^$' -bench "^($names)\$" -benchtime "${BENCHTIME:-1s}" -count "$COUNT" -timeout 2h "$pkg" >"$dir/out" 2>&1 || {
    cat "$dir/out"
    exit 1
  }
  # One line per measured value: package, benchmark (without the number of processors), metric, value.
  awk -v p="$pkg" '/^Benchmark/ { sub(/-[0-9]+$/, "", $1); for (i = 3; i < NF; i += 2) print p "\t" $1 "\t" $(i + 1) "\t" $i }' "$dir/out" >>"$dir/values"
done

sort -t "$(printf '\t')" -k 1,3 -k 4,4g "$dir/values" | awk -F '\t' '
  pass == 1 { k = $1 FS $2 FS $3; n[k]++; v[k, n[k]] = $4; next }
  {
    k = $1 FS $2 FS $3; split($4, bound, " ")
    if (!n[k]) { verdict = "NOT MEASURED"; m = "-"; bad = 1 }
    else {
      m = n[k] % 2 ? v[k, (n[k] + 1) / 2] : (v[k, n[k] / 2] + v[k, n[k] / 2 + 1]) / 2
      kept = bound[1] == ">=" ? m >= bound[2] : bound[1] == "<=" ? m <= bound[2] : 1
      verdict = kept ? "ok" : "MISSED"; if (!kept) bad = 1
    }
    printf "%-62s %12s %-14s %-10s %s\n", $5, m, $3, $4, verdict
  }
  END { exit bad }
' pass=1 - pass=2 "$dir/rows"
