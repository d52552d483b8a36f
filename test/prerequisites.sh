#!/usr/bin/env bash
# Names the Debian packages that building and testing need and that are missing; with --install, and as root, installs them.
set -euo pipefail

# command or file that shows a package is there : package
want=(
  git:git make:make gcc:gcc curl:curl
  as:binutils                      # assembles the guest that virtual machine monitors are tested with
  mmdebstrap:mmdebstrap            # builds the base template
  nft:nftables                     # flushes rules behind a pool's back
  ip:iproute2 nsenter:util-linux   # nodes in network namespaces of their own
  redis-server:redis-server        # the Redis stores are tested against the real one
  sqlite3:sqlite3                  # a copy of a running store, as docs/backup.md makes it
  qemu-system-x86_64:qemu-system-x86 mkfs.ext4:e2fsprogs dpkg-deb:dpkg xz:xz-utils # virtual machines with a Linux guest
  python3:python3 node:nodejs npm:npm # run the published SDKs
)
missing=()
for pair in "${want[@]}"; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
done
# Python's venv module is a package of its own on Debian.
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
# Firecracker for tests comes in a Python package (test/firecracker.sh), which pip gets.
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
# *.localhost resolves for every program with this; without it only programs that know RFC 6761 reach the edge by name.
getent hosts sandbox.tartarus.localhost >/dev/null 2>&1 || missing+=(libnss-myhostname)
# The race detector is the only part that needs a C compiler's headers.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)

command -v go >/dev/null 2>&1 || { echo "go is missing: install Go 1.26 or later from https://go.dev/dl" >&2; exit 1; }


# A real S3 server, for tests of the object store. Pinned, built from source, into the folder where go install puts programs.
s3_server=github.com/versity/versitygw/cmd/versitygw@v1.8.0
command -v versitygw >/dev/null 2>&1 || [ -x "$(go env GOPATH)/bin/versitygw" ] || s3_missing=yes
if [ "${s3_missing:-no}" = yes ] && [ "${1:-}" = --install ]; then
  echo "installing: $s3_server" >&2
  (cd / && CGO_ENABLED=0 go install "$s3_server")
  s3_missing=no
fi

if [ ${#missing[@]} -eq 0 ]; then
  [ "${s3_missing:-no}" = no ] || echo "no S3 server: tests of the object store are skipped; test/prerequisites.sh --install installs one" >&2
  exit 0
fi
if [ "${1:-}" != --install ]; then
  echo "missing packages: ${missing[*]}" >&2
  echo "install them: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "missing packages: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# redis-server would start a service of its own; the tests start theirs.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.tartarus
if [ ! -e /usr/sbin/policy-rc.d ]; then
  mv /usr/sbin/policy-rc.d.tartarus /usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
else
  rm -f /usr/sbin/policy-rc.d.tartarus
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
