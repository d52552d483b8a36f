#!/usr/bin/env bash
# Prepares a development machine: fills data/firecracker with a Linux kernel for virtual machines and a root file system, and checks access
# to KVM. It may be run again at any time; what is there and whole is kept.
#
#   ./dev-setup.sh            all of it
#   ./dev-setup.sh kernel     only the kernel with its modules
#   ./dev-setup.sh rootfs     only the root file system
#   ./dev-setup.sh kvm        only the check of KVM
#
# Exit codes: 0 everything is there and KVM runs guests · 2 everything is there, but KVM cannot be used: sandboxes run on gVisor, or by
# emulation where that is demanded · 1 something could not be made · 64 wrong use.
#
# Kernel and root file system come from the distribution's package mirror, by apt and under its signatures. Variables:
#   TARTARUS_DEV_DIR       where to put them (data/firecracker beside this script)
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
  die "$dir/$1 is not what was put there; remove it to have it made anew"
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
  if [ ! -e /dev/kvm ]; then
    if grep -qE '(vmx|svm)' /proc/cpuinfo; then
      say "KVM: /dev/kvm is missing; load its module: sudo modprobe kvm_intel (or kvm_amd), or switch virtualisation on in the firmware"
    else
      say "KVM: this processor offers no virtualisation here. In a virtual machine, switch nested virtualisation on for it; on macOS or Windows use a Linux virtual machine that has it"
    fi
    return 2
  fi
  if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
    say "KVM: no permission for /dev/kvm; join its group: sudo usermod -aG $(stat -c %G /dev/kvm) $USER, and log in again (or, on a machine of your own: sudo chmod 666 /dev/kvm)"
    return 2
  fi
  # That it opens proves little: a guest is run on it.
  local verdict
  verdict=$(tartarus doctor --json 2>/dev/null || true)
  if echo "$verdict" | grep -Eq '^ *"usable": true' <(echo "$verdict" | sed -n '/"kvm": {/,/}/p'); then
    say "KVM: usable"
    return 0
  fi
  say "KVM: /dev/kvm opens, but cannot run Linux: $(echo "$verdict" | sed -n '/"kvm": {/,/}/s/^ *"reason": "\(.*\)",\{0,1\}$/\1/p' | head -n 1)"
  return 2
}

case "${1:-all}" in
  kernel) kernel ;;
  rootfs) rootfs ;;
  kvm) kvm ;;
  all)
    kernel
    rootfs
    kvm
    ;;
  -h|--help|help) sed -n '2,/^set -euo/p' "$0" | sed '$d; s/^# \{0,1\}//' ;;
  *) say "unknown argument $1; --help tells what there is"; exit 64 ;;
esac
