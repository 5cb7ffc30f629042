#!/bin/bash
# Makes a bootable Debian disk image, or finds the one that an earlier run has made.
#
#   boot-image.sh
#
# A Debian 12 of mmdebstrap's variant minbase with sysvinit, a Debian kernel and its modules, as one ext4 file system
# without partitions. Booted with the kernel and initramfs beside it, it does what boot/exercise says and powers off.
#
# The last line of stdout is the directory with `image.raw`, `vmlinuz` and `initramfs`. It is in the cache, named by
# the hash of the recipe. Exit status: 0; 77 a need is missing (stderr says which, as "SKIP reason"); 1 it failed.
#
# Needs neither root nor loop devices: mke2fs fills the file system from a directory. Without root that directory
# belongs to a user namespace, so that its owners are right.
#
# Environment: XDG_CACHE_HOME, and those of tests/kernel/find-kernel.sh.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
images=${XDG_CACHE_HOME:-$HOME/.cache}/rok-blk/debian-boot
readonly suite=bookworm image_mib=512
# Downloads and the unpacking of packages; a mirror that hangs must not hang the caller.
readonly bootstrap_seconds_max=420
# Programs of administrators are not on everybody's path on Debian.
PATH=$PATH:/usr/sbin:/sbin

missing() {
  echo "SKIP $1" >&2
  exit 77
}

need_program() { command -v "$1" >/dev/null || missing "$1 is not there; install the package $2"; }
need_program mmdebstrap mmdebstrap
need_program mke2fs e2fsprogs
need_program cpio cpio
need_program xz xz-utils
need_program flock util-linux
[ "$(id -u)" = 0 ] || need_program newuidmap uidmap
busybox=$(command -v busybox) || missing 'busybox is not there; install the package busybox-static'
if ldd "$busybox" >/dev/null 2>&1; then missing "$busybox needs libraries; install the package busybox-static"; fi

# shellcheck source=tests/kernel/find-kernel.sh
source "$here/../kernel/find-kernel.sh"
find_kernel

recipe=$({ cat "${BASH_SOURCE[0]}" "$here"/boot/{exercise,inittab,initramfs-init} && basename "$kernel"; } | sha256sum)
place=$images/${recipe:0:16}
mkdir -p "$images"
# Tests that need it at the same time make it once. The lock ends with this process.
exec 9>"$images/lock"
flock --timeout 600 9
if [ -e "$place/image.raw" ]; then
  echo "$place"
  exit
fi

# As root, or as who looks like root to the files in $work.
in_namespace() {
  if [ "$(id -u)" = 0 ]; then "$@"; else unshare --map-root-user --map-auto "$@"; fi
}

# What a killed run left, and what older recipes made some time ago.
in_namespace find "$images" -mindepth 1 -maxdepth 1 -type d \( -name 'work.*' -o -mtime +7 \) -exec rm -rf {} +
work=$(mktemp -d "$images/work.XXXXXX")
trap 'in_namespace rm -rf "$work"' EXIT

# Documentation is left out: it is half of the files, and none of them runs. force-unsafe-io, since nobody needs a
# half-made tree after a power cut.
bootstrap() {
  local options=(--variant=minbase --include=sysvinit-core --dpkgopt=force-unsafe-io) name
  for name in doc man info locale; do options+=("--dpkgopt=path-exclude=/usr/share/$name/*"); done
  timeout "$bootstrap_seconds_max" mmdebstrap --quiet "${options[@]}" \
    --aptopt='Acquire::Languages "none"' "$suite" "$work/system.tar" >"$work/log" 2>&1 ||
    missing "mmdebstrap could not make a Debian $suite (no mirror, or no user namespaces?): $(tail -n 3 "$work/log")"
}

# $1: the tree's directory, $2: the image. Runs inside the namespace.
fill_image() {
  local tree=$1 image=$2
  mkdir "$tree"
  # Device nodes cannot be made in a namespace; the guest's kernel makes its own.
  tar -C "$tree" -xf "$work/system.tar" --exclude='./dev/*'
  mkdir -p "$tree/boot" "$tree/usr/lib/modules"
  cp "$kernel"/boot/vmlinuz* "$tree/boot/"
  cp -r "$kernel"/lib/modules/. "$tree/usr/lib/modules/"
  install -m 755 "$here/boot/exercise" "$tree/usr/local/sbin/exercise"
  install -m 644 "$here/boot/inittab" "$tree/etc/inittab"
  echo debian >"$tree/etc/hostname"
  # An I/O error must end the guest, not be lived with.
  echo '/dev/vda / ext4 errors=panic 0 1' >"$tree/etc/fstab"
  mke2fs -q -t ext4 -L debian -d "$tree" "$image" "${image_mib}M" >/dev/null
  # The owner outside reads it.
  chmod 644 "$image"
}

make_initramfs() {
  local root=$work/initramfs-root module
  mkdir -p "$root"/{bin,dev,system}
  install "$busybox" "$root/bin/busybox"
  module=$(find "$kernel" -name 'virtio_blk.ko*' -print -quit)
  case $module in
    *.xz) xz -dc "$module" >"$root/virtio_blk.ko" ;;
    *.ko) cp "$module" "$root/virtio_blk.ko" ;;
    *) missing "$kernel has no module virtio_blk" ;;
  esac
  install -m 755 "$here/boot/initramfs-init" "$root/init"
  (cd "$root" && find . | cpio --quiet -o -H newc) >"$work/result/initramfs"
}

mkdir "$work/result"
bootstrap
make_initramfs
cp "$(find "$kernel" -name 'vmlinuz*' -print -quit)" "$work/result/vmlinuz"
export here kernel work image_mib
export -f fill_image
# shellcheck disable=SC2016 # the shell in the namespace expands them
in_namespace bash -euo pipefail -c 'fill_image "$1" "$2"' - "$work/tree" "$work/result/image.raw"
mv -T "$work/result" "$place"
echo "$place"
