#!/bin/bash
# Makes a tree with the NBD clients of a Debian that is newer than the one here, or finds the one that an earlier run has
# made: they speak extended headers.
#
#   newer-clients.sh                        the last line of stdout is the tree's directory
#   newer-clients.sh DIRECTORY PROGRAM...   runs a program in the tree, which sees this machine's /tmp, /dev and /proc
#
# Exit status of the first form: 0; 77 a need is missing (stderr says which, as "SKIP reason"); 1 it failed. The second
# form has the program's.
#
# Environment: XDG_CACHE_HOME.
set -euo pipefail

readonly suite=trixie packages=libnbd-bin,qemu-utils,fio
# Downloads and the unpacking of packages; a mirror that hangs must not hang the caller.
readonly bootstrap_seconds_max=420

missing() {
  echo "SKIP $1" >&2
  exit 77
}

# As root, or as who looks like root to the files in the tree. What is mounted in it goes with the command.
in_namespace() {
  if [ "$(id -u)" = 0 ]; then unshare --mount "$@"; else unshare --mount --map-root-user --map-auto "$@"; fi
}

if [ $# -gt 0 ]; then
  root=$1
  shift
  # shellcheck disable=SC2016 # the shell in the namespace expands them
  in_namespace bash -euo pipefail -c '
    root=$1; shift
    for place in tmp dev proc; do mount --rbind "/$place" "$root/$place"; done
    exec chroot "$root" "$@"' - "$root" "$@"
  exit
fi

PATH=$PATH:/usr/sbin:/sbin
command -v mmdebstrap >/dev/null || missing 'mmdebstrap is not there; install the package mmdebstrap'
[ "$(id -u)" = 0 ] || command -v newuidmap >/dev/null || missing 'newuidmap is not there; install the package uidmap'
trees=${XDG_CACHE_HOME:-$HOME/.cache}/rok-blk/newer-clients
place=$trees/$(sha256sum <"${BASH_SOURCE[0]}" | cut -c 1-16)
mkdir -p "$trees"
# Tests that need it at the same time make it once. The lock ends with this process.
exec 9>"$trees/lock"
flock --timeout 600 9
if [ ! -e "$place/usr/bin/nbdinfo" ]; then
  # What a killed run left, and what older recipes made.
  in_namespace find "$trees" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
  work=$(mktemp -d "$trees/work.XXXXXX")
  trap 'in_namespace rm -rf "$work"' EXIT
  options=(--variant=minbase "--include=$packages" --dpkgopt=force-unsafe-io)
  for name in doc man info locale; do options+=("--dpkgopt=path-exclude=/usr/share/$name/*"); done
  timeout "$bootstrap_seconds_max" mmdebstrap --quiet "${options[@]}" --aptopt='Acquire::Languages "none"' \
    "$suite" "$work/system.tar" >"$work/log" 2>&1 ||
    missing "mmdebstrap could not make a Debian $suite (no mirror, or no user namespaces?): $(tail -n 3 "$work/log")"
  mkdir "$work/tree"
  # Device nodes cannot be made in a namespace; this machine's are mounted.
  in_namespace tar -C "$work/tree" -xf "$work/system.tar" --exclude='./dev/*'
  mv -T "$work/tree" "$place"
fi
echo "$place"
