#!/bin/sh
# bench.sh [WORD]: run the benchmarks that docs/benchmarks.md names in its tables (those whose row holds WORD) COUNT (5)
# times, and set the median of each metric beside its bound. Ends non-zero if one is not kept.
#
# A row is: | what | `./package BenchmarkName/sub` | `metric` | >= 0.9 | last figure |
# or, for the quotient of two benchmarks of a package, `./package BenchmarkName/sub ÷ BenchmarkName/other`.
# A benchmark that knows its own floor measures it in the same run and reports the ratio (testing.B.ReportMetric).
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go} COUNT=${COUNT:-5}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
: >"$dir/values"

# rows: package, benchmark, divisor or "", metric, bound (">= 0.9"), what
awk -F ' *[|] *' -v word="${1:-}" 'index($0, word) && $3 ~ /^`\.[^`]* Benchmark/ {
  gsub(/`/, ""); sub(/÷ */, "", $3); gsub("≥", ">=", $5); gsub("≤", "<=", $5)
  split($3, b, " ")
  print b[1] "\t" b[2] "\t" b[3] "\t" $4 "\t" $5 "\t" $2
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
  # One line for each measured value: package, benchmark (without the number of processors), metric, value.
  awk -v p="$pkg" '/^Benchmark/ { sub(/-[0-9]+$/, "", $1); for (i = 3; i < NF; i += 2) print p "\t" $1 "\t" $(i + 1) "\t" $i }' "$dir/out" >>"$dir/values"
done

sort -t "$(printf '\t')" -k 1,3 -k 4,4g "$dir/values" | awk -F '\t' '
  function median(k) { return n[k] % 2 ? v[k, (n[k] + 1) / 2] : (v[k, n[k] / 2] + v[k, n[k] / 2 + 1]) / 2 }
  pass == 1 { k = $1 FS $2 FS $3; n[k]++; v[k, n[k]] = $4; next }
  {
    k = $1 FS $2 FS $4; by = $1 FS $3 FS $4; split($5, bound, " ")
    shown = "-"; verdict = "NOT MEASURED"
    if (n[k] && ($3 == "" || n[by])) {
      m = $3 == "" ? median(k) + 0 : median(k) / median(by)
      verdict = (bound[1] == ">=" ? m >= bound[2] + 0 : m <= bound[2] + 0) ? "ok" : "MISSED"
      shown = sprintf("%.4g", m)
    }
    if (verdict != "ok") bad = 1
    printf "%-72s %10s %-22s %-12s %s\n", $6, shown, $4, $5, verdict
  }
  END { exit bad }
' pass=1 - pass=2 "$dir/rows"
