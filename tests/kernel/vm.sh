#!/bin/bash
# Boots a Debian kernel with the ublk and nbd drivers in an emulated machine, with the given programs and a script.
#
#   vm.sh --script GUEST.sh [--program FILE]... [--file FILE]... [--module NAME]... [--setting NAME=VALUE]...
#         [--disk-mib N] [--recording DIRECTORY --meta-disk-mib N] [--memory-mib N] [--seconds-max N]
#
# The machine's own kernel needs no driver, and nothing is run as root on it: the kernel package is downloaded and
# unpacked into a cache, never installed. The guest has busybox, each --program in /bin with the libraries it loads
# (an absolute system path such as /sbin/mke2fs keeps its place), each --file in /etc/files, each --module loaded behind
# those that it needs, each --setting exported, and with --disk-mib a scratch disk /dev/vda. With --recording there are
# /dev/vdb, of --meta-disk-mib, and a small /dev/vdc as well, and all that is done to the three is recorded in DIRECTORY
# (recorded-disks.sh).
#
# The guest script is sourced by a busybox shell, after tests/kernel/guest.sh, which has its vocabulary: stage, skip,
# say. It finds tests/kernel/daemon.sh as /etc/daemon.sh.
#
# Prints the guest's lines, then "N passed, N failed, N skipped". All that the machine said is kept for a week, in kernel-logs of the
# build folder. Exit status: 0 all passed; 1 something failed, or
# the machine did not come to its end; 77 a need is missing (the reason is printed), or 1 with ROK_REQUIRE_KERNEL=1 or
# ROK_REQUIRE_ALL=1.
#
# Environment: ROK_KERNEL_SERIES (6.12), ROK_KERNEL_DIRECTORY (an unpacked kernel package, instead of a download),
# XDG_CACHE_HOME, ROK_VM_KEEP=1 (keep the working directory), ROK_VM_ACCELERATOR (tcg,thread=multi).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly processors=2 consoles=${CARGO_TARGET_DIR:-$here/../../target}/kernel-logs
script='' programs=() files=() modules=() settings=() disk_mib=0 memory_mib=1536 recording='' meta_disk_mib=0
seconds_max=360

usage() { sed -n '2,6p' "${BASH_SOURCE[0]}" >&2; exit 2; }

# A need is missing: skipped with a reason, unless the caller insists.
missing() {
  if [ "${ROK_REQUIRE_KERNEL:-0}" = 1 ] || [ "${ROK_REQUIRE_ALL:-0}" = 1 ]; then
    echo "FAIL kernel: $1"
    echo '0 passed, 1 failed, 0 skipped'
    exit 1
  fi
  echo "SKIP kernel: $1"
  echo '0 passed, 0 failed, 1 skipped'
  exit 77
}

while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --script) script=$2 ;;
    --program) programs+=("$2") ;;
    --file) files+=("$2") ;;
    --module) modules+=("$2") ;;
    --setting) settings+=("$2") ;;
    --disk-mib) disk_mib=$2 ;;
    --memory-mib) memory_mib=$2 ;;
    --recording) recording=$2 ;;
    --meta-disk-mib) meta_disk_mib=$2 ;;
    --seconds-max) seconds_max=$2 ;;
    *) usage ;;
  esac
  shift 2
done
[ -r "$script" ] || usage

need_program() { command -v "$1" >/dev/null || missing "$1 is not there; install the package $2"; }
need_program qemu-system-x86_64 qemu-system-x86
need_program cpio cpio
need_program xz xz-utils
need_program dpkg-deb dpkg
busybox=$(command -v busybox) || missing 'busybox is not there; install the package busybox-static'
if ldd "$busybox" >/dev/null 2>&1; then missing "$busybox needs libraries; install the package busybox-static"; fi

# --- the kernel ------------------------------------------------------------------------------------------------------

# shellcheck source=tests/kernel/find-kernel.sh
source "$here/find-kernel.sh"
find_kernel
image=$(find "$kernel" -name 'vmlinuz*' -print -quit)
module_root=$(find "$kernel/lib/modules" "$kernel/usr/lib/modules" -mindepth 1 -maxdepth 1 -type d 2>/dev/null |
  head -1 || true)

# --- the guest's files -----------------------------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/rok-vm.XXXXXX")
machine='' recorder=''
finish() {
  if [ -n "$machine" ]; then kill "$machine" 2>/dev/null || true; fi
  if [ -n "$recorder" ]; then kill "$recorder" 2>/dev/null || true; fi
  if [ -s "$work/console" ]; then
    mkdir -p "$consoles"
    find "$consoles" -name '*.console' -mtime +7 -delete
    cp "$work/console" "$consoles/$(date +%Y%m%d-%H%M%S)-$(basename "$script" .sh)-$(basename "${module_root:-kernel}").console"
  fi
  if [ "${ROK_VM_KEEP:-0}" = 1 ]; then echo "kept $work"; else rm -rf "$work"; fi
}
trap finish EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,mnt,modules,etc,run}

copy_with_libraries() {
  local program=$1 place=$1 library
  [ -x "$program" ] || missing "$program is not there"
  case $program in /bin/* | /sbin/* | /usr/*) ;; *) place=/bin/$(basename "$program") ;; esac
  install -D "$(readlink -f "$program")" "$root$place"
  # The emulated machine reads all of it before it starts, and what is for debuggers is most of it.
  ! command -v strip >/dev/null || strip --strip-debug "$root$place"
  while read -r library; do
    [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
  done < <(ldd "$program" 2>/dev/null | grep -oE '/[^ ]+' || true)
}

# add_module NAME: those that it needs first, as it says itself, since a kernel that is only unpacked has no modules.dep.
add_module() {
  local module=$1 file needed
  [ ! -e "$root/modules/$module.ko" ] || return 0
  # Names of files have either of the two.
  file=$(find "$module_root" -name "${module//[-_]/[-_]}.ko*" -print -quit)
  # What is built in has no file.
  if [ -z "$file" ]; then
    grep -q "/${module//[-_]/[-_]}\.ko$" "$module_root/modules.builtin" || missing "$kernel has no module $module"
    return 0
  fi
  case $file in
    *.xz) xz -dc "$file" >"$root/modules/$module.ko" ;;
    *.zst) need_program zstd zstd; zstd -qdc "$file" >"$root/modules/$module.ko" ;;
    *) cp "$file" "$root/modules/$module.ko" ;;
  esac
  for needed in $(tr '\0' '\n' <"$root/modules/$module.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
    add_module "$needed"
  done
  echo "$module" >>"$root/modules/order"
}

install "$busybox" "$root/bin/busybox"
for program in ${programs[@]+"${programs[@]}"}; do copy_with_libraries "$program"; done
mkdir "$root/etc/files"
for file in ${files[@]+"${files[@]}"}; do
  [ -r "$file" ] || missing "$file is not there"
  cp "$file" "$root/etc/files/"
done
[ "$disk_mib" = 0 ] || modules=(virtio_blk ${modules[@]+"${modules[@]}"})
for module in ${modules[@]+"${modules[@]}"}; do add_module "$module"; done
# Where programs find libraries that are in no standard directory.
libraries=$(cd "$root" && find . -name '*.so*' -printf '/%P\n' | xargs -r -n1 dirname | sort -u | paste -sd: -)
for setting in "LD_LIBRARY_PATH=$libraries" "${settings[@]}"; do echo "export $setting"; done >"$root/etc/environment"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
install -m 755 "$here/init" "$root/init"
cp "$here/guest.sh" "$here/daemon.sh" "$root/etc/"
cp "$script" "$root/etc/script.sh"
(cd "$root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"

# --- the machine -----------------------------------------------------------------------------------------------------

# shellcheck source=tests/kernel/recorded-disks.sh
source "$here/recorded-disks.sh"
disk=()
if [ -n "$recording" ]; then
  need_program qemu-nbd qemu-utils
elif [ "$disk_mib" != 0 ]; then
  truncate -s "${disk_mib}M" "$work/disk"
  cache_mode=none
  # A directory in memory takes no O_DIRECT.
  case $(stat -f -c %T "$work") in tmpfs | overlayfs) cache_mode=writeback ;; esac
  disk=(-drive "file=$work/disk,format=raw,if=virtio,cache=$cache_mode,aio=threads")
fi
echo "kernel $(basename "${module_root:-$image}"), initramfs $(($(stat -c %s "$work/initramfs") >> 20)) MiB"
started=$SECONDS
# boot: runs the machine to its end, with what it says in the file "console".
boot() {
  status=0
  [ -z "$recording" ] || record_disks "$recording" "$disk_mib" "$meta_disk_mib"
  # What the emulator has translated it finds again by its address, so that a program that lies elsewhere in each process is
  # translated anew each time, six times what it takes to run: norandmaps. It does the repeated instructions byte by byte,
  # which no program chooses that is not told they are fast: -erms, -fsrm.
  timeout --signal=KILL "$seconds_max" qemu-system-x86_64 \
    -accel "${ROK_VM_ACCELERATOR:-tcg,thread=multi}" -cpu max,-erms,-fsrm -smp "$processors" \
    -m "$memory_mib" -machine q35 -nodefaults -display none -no-reboot -serial stdio -monitor none \
    -kernel "$image" -initrd "$work/initramfs" "${disk[@]}" \
    -append 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps tsc=reliable random.trust_cpu=on' \
    </dev/null >"$work/console" 2>&1 &
  machine=$!
  wait "$machine" || status=$?
  machine=''
  [ -z "$recording" ] || end_recording
}

# Where the emulator runs processors side by side, a kernel that patches its own code while it boots may run into its own
# breakpoint, once in some dozen boots. That is no result of the script, which has not begun.
for _ in 1 2 3; do
  boot
  if grep -aq '^VM BEGIN' "$work/console" || ! grep -aq 'Kernel panic' "$work/console"; then break; fi
  echo "NOTE the kernel did not boot: $(grep -aoE 'Oops: .*|Kernel panic.*' "$work/console" | head -n 1)"
done

lines() { grep -acE "$1" "$work/console" || true; }
tr -d '\r' <"$work/console" | grep -aE '^((PASS|FAIL|SKIP|NOTE) |[|])' || true
passed=$(lines '^PASS ') failed=$(lines '^FAIL ') skipped=$(lines '^SKIP ')
if ! grep -aq '^VM END' "$work/console"; then
  echo "FAIL vm: the machine did not come to its end within $seconds_max s (status $status); its last lines:"
  tail -40 "$work/console"
  failed=$((failed + 1))
fi
echo "machine ran $((SECONDS - started)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
