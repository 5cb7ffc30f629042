#!/bin/bash
# Finds a Debian kernel with the ublk and nbd drivers: in the cache, else downloaded and unpacked into it, never
# installed. Sourced; the caller defines `missing REASON`, which does not return.
#
# find_kernel sets `kernel` to the directory of an unpacked kernel package.
#
# Environment: ROK_KERNEL_SERIES (6.12), ROK_KERNEL_DIRECTORY (an unpacked kernel package, instead of a download),
# XDG_CACHE_HOME.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/rok-blk/kernel
series=${ROK_KERNEL_SERIES:-6.12}

# Names of the packages that hold such a kernel, newest first.
kernel_packages() {
  apt-cache pkgnames "linux-image-$series" 2>/dev/null |
    grep -E "^linux-image-${series//./\\.}[.][0-9]+.*-cloud-amd64$" | sort -rV || true
}

# Downloads and unpacks one package. The directory appears in the cache only when it is whole.
fetch_kernel() {
  local package=$1 work
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  local options=()
  # Root's downloads otherwise go through a user who cannot write here.
  [ "$(id -u)" != 0 ] || options=(-o APT::Sandbox::User=root)
  if (cd "$work" && timeout 300 apt-get -qq "${options[@]}" download "$package") >/dev/null 2>&1 &&
    mkdir "$work/root" && dpkg-deb -x "$work"/*.deb "$work/root" && has_drivers "$work/root"; then
    mv -T "$work/root" "$cache/$package" 2>/dev/null || true
  fi
  rm -rf "$work"
  [ -d "$cache/$package" ]
}

has_drivers() {
  [ -n "$(find "$1" -name 'vmlinuz*' -print -quit)" ] && [ -n "$(find "$1" -name 'ublk_drv.ko*' -print -quit)" ]
}

find_kernel() {
  if [ -n "${ROK_KERNEL_DIRECTORY:-}" ]; then
    has_drivers "$ROK_KERNEL_DIRECTORY" || missing "$ROK_KERNEL_DIRECTORY has no kernel with ublk_drv"
    kernel=$ROK_KERNEL_DIRECTORY
    return
  fi
  mkdir -p "$cache"
  # What an earlier run has downloaded will do; it also serves without a network.
  kernel=$(find "$cache" -maxdepth 1 -type d -name "linux-image-$series.*" | sort -rV | head -1)
  [ -z "$kernel" ] || return 0
  command -v apt-get >/dev/null ||
    missing 'apt-get is not there, so that no kernel can be downloaded; set ROK_KERNEL_DIRECTORY'
  local package
  if [ -z "$(kernel_packages)" ] && [ "$(id -u)" = 0 ]; then timeout 300 apt-get -qq update >/dev/null 2>&1 || true; fi
  # An old one may be listed and gone: a few are tried.
  for package in $(kernel_packages | head -3); do
    if fetch_kernel "$package"; then kernel=$cache/$package; return 0; fi
  done
  missing "no linux-image-$series.*-cloud-amd64 could be downloaded; run apt-get update, or set ROK_KERNEL_DIRECTORY"
}
