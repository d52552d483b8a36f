#!/usr/bin/env bash
# Prepares a development machine: fills data/firecracker with the Firecracker release, a Linux kernel for virtual machines and a root file
# system, and checks access to KVM and for Docker. It may be run again at any time; what is there and whole is kept, what was interrupted is resumed.
#
#   ./dev-setup.sh            all of it: fetched, and where nothing can be fetched, kernel and root file system made from packages
#   ./dev-setup.sh fetch      only what is fetched: Firecracker, a sample kernel, a sample root file system
#   ./dev-setup.sh kernel     only the kernel with its modules, from packages
#   ./dev-setup.sh rootfs     only the root file system, from packages
#   ./dev-setup.sh kvm        only the check of KVM
#   ./dev-setup.sh docker     only the check for Docker and Compose, which docker-compose.yml needs and nothing else does
#
# Exit codes: 0 everything is there and KVM runs guests · 2 everything is there, but KVM cannot be used: sandboxes run on gVisor, or by
# emulation where that is demanded · 3 all but the Firecracker release is there, which no package has · 4 a file is not what its checksum says
# · 1 something could not be made or fetched · 64 wrong use.
#
# What is fetched is held against the checksum published beside it, and recorded in CHECKSUMS: a later change is refused. What is made comes
# from the distribution's package mirror, by apt and under its signatures. Variables:
#   TARTARUS_MIRROR        a mirror of what is fetched: MIRROR/HOST/PATH in place of https://HOST/PATH
#   TARTARUS_DEV_DIR       where to put everything (data/firecracker beside this script)
#   TARTARUS_DEV_KERNEL    a kernel to take instead: a vmlinux or vmlinuz file, with its modules in modules/VERSION beside it
#   TARTARUS_DEV_PACKAGES  packages of the root file system beside the least
set -euo pipefail
cd "$(dirname "$0")"

dir=${TARTARUS_DEV_DIR:-data/firecracker}
package=linux-image-cloud-amd64
packages=${TARTARUS_DEV_PACKAGES:-bash,ca-certificates,curl,git,iproute2,procps,python3,sudo}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

say() { echo "dev-setup: $*" >&2; }
die() { say "$*"; exit 1; }
refuse() { say "$*"; exit 4; } # what is there or came is not what it should be
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is missing; install it: sudo apt-get install $2"; }

work=
clean() { [ -z "$work" ] || rm -rf "$work"; }
trap clean EXIT
trap 'exit 130' INT TERM
scratch() { [ -n "$work" ] || work=$(mktemp -d "$dir/.new-XXXXXX"); }

# place moves what was made to its name in one step, after what was there is out of the way.
place() {
  local from=$1 to=$2
  rm -rf "$to.old"
  [ ! -e "$to" ] || mv -T "$to" "$to.old"
  mv -T "$from" "$to"
  rm -rf "$to.old"
}

# note records what was put where, so that a later change of it is seen.
note() {
  local name=$1
  touch "$dir/CHECKSUMS"
  { grep -v "  $name\$" "$dir/CHECKSUMS" || true; (cd "$dir" && sha256sum "$name"); } >"$dir/.CHECKSUMS.new"
  mv "$dir/.CHECKSUMS.new" "$dir/CHECKSUMS"
}

# whole tells whether a file is there as it was made.
whole() {
  [ -e "$dir/$1" ] && [ -e "$dir/CHECKSUMS" ] && grep -q "  $1\$" "$dir/CHECKSUMS" || return 1
  (cd "$dir" && grep "  $1\$" CHECKSUMS | sha256sum --check --status) && return 0
  refuse "$dir/$1 is not what was put there; remove it to have it made anew"
}

# Firecracker, and the line of its sample kernels and root file systems.
version=v1.12.1
ci=v1.12
releases=github.com/firecracker-microvm/firecracker/releases/download
samples=s3.amazonaws.com/spec.ccfc.min
arch=$(uname -m)
[ "$arch" != arm64 ] || arch=aarch64

url() { if [ -n "${TARTARUS_MIRROR:-}" ]; then echo "${TARTARUS_MIRROR%/}/$1"; else echo "https://$1"; fi; }
page() { curl -fsSL --connect-timeout 10 --max-time 60 "$1" 2>/dev/null; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
recorded() { [ ! -e "$dir/CHECKSUMS" ] || awk -v f="$1" '$2 == f { print $1 }' "$dir/CHECKSUMS"; }

# download URL FILE: resumable; FILE appears only when it is whole.
download() {
  local from=$1 to=$2 try status=0
  for try in 1 2 3 4 5; do
    status=0
    curl -fsSL --connect-timeout 10 --speed-limit 1 --speed-time 30 -C - -o "$to.part" "$from" 2>/dev/null || status=$?
    case $status in
      0) mv "$to.part" "$to"; return 0 ;;
      18 | 28 | 56) sleep "$((try < 3 ? try : 3))" ;; # cut off in the middle: go on from there
      33) rm -f "$to.part" ;;                         # this server cannot resume: from the start
      22) # Refused. A part that is as long as the file, or longer, cannot be resumed either.
        [ -s "$to.part" ] || return 22
        rm -f "$to.part"
        ;;
      *) return "$status" ;;
    esac
  done
  return "$status"
}

# published URL: the SHA-256 that stands beside an artefact; nothing when none is published.
published() {
  local suffix text
  for suffix in .sha256.txt .sha256; do
    text=$(page "$1$suffix" | grep -oiE '^[0-9a-f]{64}' | head -n 1 || true)
    [ -z "$text" ] || { tr 'A-F' 'a-f' <<<"$text"; return; }
  done
}

# fetch HOST/PATH FILE [required]: gets an artefact, holds it against the checksum published beside it, and records what it is. With
# "required" one without a published checksum is refused. It fails when nothing came.
fetch() {
  local from want got file=$2
  if whole "$file"; then say "$file is there"; return; fi
  from=$(url "$1")
  download "$from" "$dir/$file" || { say "$from could not be fetched (curl: $?); run this again to go on from there, or name a mirror in TARTARUS_MIRROR"; return 1; }
  got=$(sum "$dir/$file")
  want=$(published "$from")
  if [ -z "$want" ] && [ "${3:-}" = required ]; then
    rm -f "$dir/$file"
    refuse "no checksum is published beside $from"
  elif [ -z "$want" ]; then
    say "no checksum is published beside $from; what came is recorded, and a later change is refused"
  elif [ "$want" != "$got" ]; then
    rm -f "$dir/$file"
    refuse "$from is not what its published checksum says: $got instead of $want"
  fi
  want=$(recorded "$file")
  if [ -n "$want" ] && [ "$want" != "$got" ]; then
    rm -f "$dir/$file"
    refuse "$from has changed since it was recorded in $dir/CHECKSUMS: $got instead of $want; remove its line there if you trust the new one"
  fi
  note "$file"
  say "$file fetched ($(stat -c %s "$dir/$file") bytes)"
}

# newest PREFIX PATTERN: the newest object whose name matches, from the bucket's listing or a mirror's index of the folder.
newest() {
  local text
  text=$(page "$(url "$samples")/?list-type=2&prefix=$1" || true)
  grep -q "<Key>" <<<"$text" || text=$(page "$(url "$samples/${1%/*}/")" || true)
  grep -oE "$2" <<<"$text" | sort -uV | tail -n 1 || true
}

# release gets the monitor and its jailer.
release() {
  local tgz=firecracker-$version-$arch.tgz name
  if whole firecracker && whole jailer; then say "firecracker and jailer are there"; return; fi
  fetch "$releases/$version/$tgz" "$tgz" required || return 1
  for name in firecracker jailer; do
    tar -xzOf "$dir/$tgz" "release-$version-$arch/$name-$version-$arch" >"$dir/$name.part" || refuse "$tgz does not hold $name"
    chmod 755 "$dir/$name.part"
    mv "$dir/$name.part" "$dir/$name"
    note "$name"
    say "$name unpacked"
  done
}

# sample PREFIX PATTERN: gets the newest sample of a kind, unless one is there.
sample() {
  local name
  name=$(cd "$dir" && ls 2>/dev/null | grep -xE "$2" | sort -V | tail -n 1 || true)
  [ -n "$name" ] || name=$(newest "$1" "$2")
  [ -n "$name" ] || { say "nothing like $1 was found at $(url "$samples"); name a mirror in TARTARUS_MIRROR"; return 1; }
  fetch "$samples/${1%/*}/$name" "$name"
}

sample_kernel() {
  sample "firecracker-ci/$ci/$arch/vmlinux-6.1" 'vmlinux-6\.1\.[0-9]+' || return 1
  local file
  file=$(cd "$dir" && ls | grep -xE 'vmlinux-6\.1\.[0-9]+' | sort -V | tail -n 1)
  [ "$arch" != x86_64 ] || [ "$(head -c 4 "$dir/$file" | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || refuse "$dir/$file is no kernel that Firecracker can load"
}

sample_rootfs() { sample "firecracker-ci/$ci/$arch/ubuntu-" 'ubuntu-[0-9]+\.[0-9]+\.squashfs'; }

# fetch_all gets what Firecracker's makers publish.
fetch_all() {
  need curl curl; need sha256sum coreutils; need tar tar; need awk mawk
  release && sample_kernel && sample_rootfs
}

# suits tells whether a sample kernel can run sandboxes, too: they need EROFS and overlays, which experiments with the monitor do not.
suits() {
  local file
  file=$(cd "$dir" && ls 2>/dev/null | grep -xE 'vmlinux-6\.1\.[0-9]+' | sort -V | tail -n 1 || true)
  [ -n "$file" ] && [ -x bin/tartarus ] && bin/tartarus kernel check "$dir/$file" >/dev/null 2>&1
}

# fetch_kernel fills $1 with vmlinuz, config and modules/VERSION. Other sources of a kernel belong here, before the last.
fetch_kernel() {
  local to=$1 real
  if [ -n "${TARTARUS_DEV_KERNEL:-}" ]; then
    [ -f "$TARTARUS_DEV_KERNEL" ] || die "TARTARUS_DEV_KERNEL: there is no file $TARTARUS_DEV_KERNEL"
    cp "$TARTARUS_DEV_KERNEL" "$to/vmlinuz"
    for m in modules ../lib/modules; do
      local from; from=$(dirname "$TARTARUS_DEV_KERNEL")/$m
      [ ! -d "$from" ] || { cp -a "$from" "$to/modules"; break; }
    done
    cp "$(dirname "$TARTARUS_DEV_KERNEL")"/config* "$to/" 2>/dev/null || true
    return
  fi
  [ "$(uname -m)" = x86_64 ] || die "kernels are packaged for x86-64 only; name one with TARTARUS_DEV_KERNEL"
  need apt-get apt; need apt-cache apt; need dpkg-deb dpkg
  real=$(apt-cache depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
  if [ -z "$real" ]; then
    [ "$(id -u)" != 0 ] || apt-get update -qq >&2 || true
    real=$(apt-cache depends "$package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
  fi
  [ -n "$real" ] || die "no package $package: run 'sudo apt-get update', or name a kernel with TARTARUS_DEV_KERNEL"
  say "getting $real"
  mkdir "$to/deb"
  (cd "$to/deb" && apt-get download -qq "$real" 2>"$to/log") ||
    { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 && (cd "$to/deb" && apt-get download -qq "$real" 2>"$to/log"); } ||
    die "$real cannot be downloaded: $(tail -n 1 "$to/log")"
  dpkg-deb -x "$to"/deb/*.deb "$to/tree"
  mv "$to"/tree/boot/vmlinuz-* "$to/vmlinuz"
  mv "$to"/tree/boot/config-* "$to/"
  for m in "$to/tree/usr/lib/modules" "$to/tree/lib/modules"; do [ ! -d "$m" ] || mv "$m" "$to/modules"; done
}

tartarus() {
  local bin=bin/tartarus
  if [ ! -x "$bin" ]; then
    need go "golang, from https://go.dev/dl"
    say "building bin/tartarus, which takes the kernel apart"
    make -s build >&2
  fi
  "$bin" "$@"
}

kernel() {
  if whole vmlinux; then say "kernel: $dir/vmlinux is there"; return; fi
  scratch
  mkdir "$work/kernel"
  fetch_kernel "$work/kernel"
  say "kernel: $(tartarus kernel extract "$work/kernel/vmlinuz" "$work/kernel/vmlinux")"
  tartarus kernel check "$work/kernel/vmlinux" >"$work/check" || { cat "$work/check" >&2; die "this kernel cannot run sandboxes"; }
  [ ! -d "$work/kernel/modules" ] || place "$work/kernel/modules" "$dir/modules"
  rm -f "$dir"/config-*
  cp "$work"/kernel/config* "$dir/" 2>/dev/null || true
  mv "$work/kernel/vmlinux" "$dir/vmlinux"
  note vmlinux
  say "kernel: made $dir/vmlinux"
}

# rootfs is for experiments with the monitors alone: sandboxes boot templates, which `tartarus template build` makes.
rootfs() {
  if whole rootfs.tar; then say "root file system: $dir/rootfs.tar is there"; return; fi
  need mmdebstrap mmdebstrap
  scratch
  say "root file system: by mmdebstrap, about half a minute"
  mmdebstrap --quiet --variant=minbase --include="$packages" "$(. /etc/os-release; echo "${VERSION_CODENAME:-bookworm}")" "$work/rootfs.tar" >"$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2; die "mmdebstrap failed"; }
  mv "$work/rootfs.tar" "$dir/rootfs.tar"
  note rootfs.tar
  say "root file system: made $dir/rootfs.tar"
  if [ "$(id -u)" = 0 ] && command -v mkfs.ext4 >/dev/null; then
    mkdir "$work/tree"
    tar -xf "$dir/rootfs.tar" -C "$work/tree"
    truncate -s 1G "$work/rootfs.ext4"
    mkfs.ext4 -q -F -d "$work/tree" "$work/rootfs.ext4"
    mv "$work/rootfs.ext4" "$dir/rootfs.ext4"
    note rootfs.ext4
    say "root file system: made $dir/rootfs.ext4"
  fi
}

kvm() {
  local device=${TARTARUS_KVM_DEVICE:-/dev/kvm}
  if [ ! -e "$device" ]; then
    if grep -qE '(vmx|svm)' /proc/cpuinfo; then
      say "KVM: /dev/kvm is missing; load its module: sudo modprobe kvm_intel (or kvm_amd), or switch virtualisation on in the firmware"
    else
      say "KVM: this processor offers no virtualisation here. In a virtual machine, switch nested virtualisation on for it; on macOS or Windows use a Linux virtual machine that has it"
    fi
    return 2
  fi
  if [ ! -r "$device" ] || [ ! -w "$device" ]; then
    say "KVM: no permission for $device; join its group: sudo usermod -aG $(stat -c %G "$device") $(id -un), and log in again (or, on a machine of your own: sudo chmod 666 $device)"
    return 2
  fi
  # That it opens proves little: a guest is run on it.
  local verdict
  verdict=$(tartarus doctor --json 2>/dev/null | tr -d '\n' || true)
  if grep -Eq '"name": "/dev/kvm",[^}]*"status": "ok"' <<<"$verdict"; then
    say "KVM: usable"
    return 0
  fi
  say "KVM: $device opens, but cannot run Linux: $(grep -oE '"name": "/dev/kvm",[^}]*' <<<"$verdict" | sed -n 's/.*"detail": "\([^"]*\)".*/\1/p')"
  return 2
}

# docker_engine tells whether docker-compose.yml could be brought up here.
docker_engine() {
  local compose instead="; \`make stack\` runs the same processes without"
  if ! command -v docker >/dev/null; then
    say "Docker: not installed (https://docs.docker.com/engine/install)$instead"
    return 1
  fi
  if docker compose version >/dev/null 2>&1; then
    compose="docker compose"
  elif command -v docker-compose >/dev/null; then
    compose=docker-compose
  else
    say "Docker: Compose is missing; install the package docker-compose-plugin$instead"
    return 1
  fi
  if ! timeout 20 docker info >/dev/null 2>&1; then
    say "Docker: its engine does not answer $(id -un); start it, or join its group: sudo usermod -aG docker $(id -un), and log in again$instead"
    return 1
  fi
  say "Docker: usable, $compose up --build"
}

# everything fetches what can be fetched and makes the rest.
everything() {
  local code=0 fetched=yes
  fetch_all || fetched=
  if [ -z "$fetched" ] || ! suits; then
    [ -n "$fetched" ] || say "going on with packages of the distribution"
    kernel
    rootfs
  fi
  kvm || code=$?
  docker_engine || true # only one way of running the developer stack needs it
  if ! whole firecracker; then
    say "Firecracker itself is in no package: run this again where the Internet or a mirror can be reached"
    code=3
  fi
  return "$code"
}

case "${1:-all}" in
  kernel) kernel ;;
  rootfs) rootfs ;;
  kvm) kvm ;;
  docker) docker_engine ;;
  fetch) fetch_all ;;
  all) everything ;;
  -h|--help|help) sed -n '2,/^set -euo/p' dev-setup.sh | sed '$d; s/^# \{0,1\}//' ;;
  *) say "unknown argument $1; --help tells what there is"; exit 64 ;;
esac
