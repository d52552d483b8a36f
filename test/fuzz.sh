#!/usr/bin/env bash
# Runs every fuzz target for a fixed time each, from the corpora in testdata/fuzz: fuzz.sh [TIME], 5s by default. A failing input is
# written beside the corpus; committed there it stays a test.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-5s}
go=${GO:-go}
export CGO_ENABLED=0 GOFLAGS=-trimpath

# run FOLDER FILE TARGET: the package with this one test file. With all of them, what other tests import would be built anew for the fuzzer
# too, a database among it, for minutes.
run() {
  local sources
  sources=$($go list -f '{{range .GoFiles}}{{$.Dir}}/{{.}} {{end}}' "./$1")
  $go test -run '^$' -fuzz "^$3\$" -fuzztime "$time" -fuzzminimizetime 10s -parallel "$(nproc)" $sources "$PWD/$2"
}

failed=0 count=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
while IFS=: read -r file target; do
  folder=$(dirname "$file")
  count=$((count + 1))
  if ! run "$folder" "$file" "$target" >"$out" 2>&1; then
    # The fuzzer's own clock can fail a run that found nothing; what it found is on disk then.
    if grep -q 'Failing input written' "$out" || ! grep -q 'context deadline exceeded' "$out" || ! run "$folder" "$file" "$target" >"$out" 2>&1; then
      cat "$out"
      failed=1
      continue
    fi
  fi
  echo "ok $folder $target $(grep -o 'execs: [0-9]*' "$out" | tail -n 1)"
done < <(git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/func //')
[ $count -gt 0 ] || { echo "no fuzz targets found" >&2; exit 1; }
exit $failed
