#!/usr/bin/env bash
# Runs every fuzz target for a fixed time each, from the corpora in testdata/fuzz: fuzz.sh [TIME], 5s by default. A failing input is
# written beside the corpus; committed there it stays a test.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-5s}
go=${GO:-go}
export CGO_ENABLED=0 GOFLAGS=-trimpath

# The sandbox kernel is not built with the fuzzer's instrumentation: that takes minutes, and its targets are its makers'.
gvisor=$($go list -test -f '{{.ImportPath}} {{join .Deps " "}}' ./... | grep -F gvisor.dev/gvisor | sed 's/[ .]test.*//; s/_test .*//; s/ .*//' | sort -u)
module=$($go list -m)

run() { # run PACKAGE TARGET
  $go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 10s -parallel "$(nproc)" "$1"
}

failed=0 count=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
while IFS=: read -r file target; do
  package=./$(dirname "$file")
  if grep -qx "$module/${package#./}" <<<"$gvisor"; then
    echo "skipped $package $target: it needs the sandbox kernel"
    continue
  fi
  count=$((count + 1))
  if ! run "$package" "$target" >"$out" 2>&1; then
    # The fuzzer's own clock can fail a run that found nothing; what it found is on disk then.
    if grep -q 'Failing input written' "$out" || ! grep -q 'context deadline exceeded' "$out" || ! run "$package" "$target" >"$out" 2>&1; then
      cat "$out"
      failed=1
      continue
    fi
  fi
  echo "ok $package $target $(grep -o 'execs: [0-9]*' "$out" | tail -n 1)"
done < <(git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed 's/func //')
[ $count -gt 0 ] || { echo "no fuzz targets found" >&2; exit 1; }
exit $failed
