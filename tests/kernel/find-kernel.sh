#!/bin/bash
# Finds a Debian kernel with the ublk and nbd drivers: in the cache, else downloaded and unpacked into it, never
# installed. Sourced; the caller defines `missing REASON`, which does not return.
#
# find_kernel sets `kernel` to the directory of an unpacked kernel package.
#
# A kernel that this machine's own package lists do not have is looked for in newer suites of its Debian mirror, with lists
# and state of their own in the cache; what is downloaded is verified with the keys of debian-archive-keyring all the same.
#
# Environment: ROK_KERNEL_SERIES (6.12; 7.x is the newest of all 7), ROK_KERNEL_DIRECTORY (an unpacked kernel package,
# instead of a download), XDG_CACHE_HOME.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/rok-blk/kernel
series=${ROK_KERNEL_SERIES:-6.12}
readonly newer_suites='trixie trixie-backports' debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg
# Options of apt for the lists that are searched; none for this machine's own.
apt_options=()

# Root's downloads otherwise go through a user who cannot write here.
if [ "$(id -u)" = 0 ]; then download_options=(-o APT::Sandbox::User=root); else download_options=(); fi

# What the names of all of the series' versions begin with, as a glob and as a regular expression.
series_glob=${series%.x} series_pattern=${series%.x}
series_pattern=${series_pattern//./\\.}

# Versions of the series that the lists have, newest first, like 6.18.15+deb13-cloud-amd64.
kernel_versions() {
  apt-cache "${apt_options[@]}" pkgnames "linux-image-$series_glob" 2>/dev/null |
    sed -nE "s/^linux-image-(${series_pattern}[.][0-9]+.*-cloud-amd64)$/\\1/p" | sort -rV || true
}

has_package() { apt-cache "${apt_options[@]}" show --no-all-versions "$1" 2>/dev/null | grep -q '^Filename: '; }

# kernel_parts VERSION: the packages with its image and its modules; none if the lists lack one of them.
kernel_parts() {
  local binary=''
  for name in "linux-binary-$1" "linux-binary-unsigned-$1"; do
    if [ -z "$binary" ] && has_package "$name"; then binary=$name; fi
  done
  # Newer ones are split.
  if [ -z "$binary" ]; then echo "linux-image-$1"; elif has_package "linux-modules-$1"; then echo "$binary linux-modules-$1"; fi
}

# Downloads and unpacks one version. The directory appears in the cache only when it is whole.
fetch_kernel() {
  local version=$1 work parts package
  parts=$(kernel_parts "$version")
  [ -n "$parts" ] || return 1
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  # shellcheck disable=SC2086 # several packages
  if (cd "$work" && timeout 300 apt-get -qq "${download_options[@]}" "${apt_options[@]}" download $parts) >/dev/null 2>&1; then
    for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
    ! has_drivers "$work/root" || mv -T "$work/root" "$cache/linux-image-$version" 2>/dev/null || true
  fi
  rm -rf "$work"
  [ -d "$cache/linux-image-$version" ]
}

has_drivers() {
  [ -n "$(find "$1" -name 'vmlinuz*' -print -quit)" ] && [ -n "$(find "$1" -name 'ublk_drv.ko*' -print -quit)" ]
}

# fetch_newest: an old one may be listed and gone, so a few are tried.
fetch_newest() {
  local version
  for version in $(kernel_versions | head -3); do
    if fetch_kernel "$version"; then kernel=$cache/linux-image-$version; return 0; fi
  done
  return 1
}

# use_newer_lists: from now on apt's commands use lists of newer suites, which nothing else sees. Fails without a mirror.
use_newer_lists() {
  local state=$cache/lists mirror suite
  [ -r "$debian_keys" ] || missing "$debian_keys is not there; install the package debian-archive-keyring"
  mirror=$(apt-get indextargets --format "\$(ORIGIN) \$(LABEL) \$(REPO_URI)" 2>/dev/null |
    awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
  [ -n "$mirror" ] || return 1
  mkdir -p "$state"/state/lists/partial "$state"/cache/archives/partial
  : >"$state/status"
  for suite in $newer_suites; do echo "deb [arch=amd64 signed-by=$debian_keys] $mirror $suite main"; done >"$state/sources"
  apt_options=(-o "Dir::State=$state/state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
    -o "Dir::Etc::sourcelist=$state/sources" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=-
    -o Acquire::Languages=none)
  timeout 300 apt-get -qq "${download_options[@]}" "${apt_options[@]}" update >/dev/null 2>&1
}

find_kernel() {
  if [ -n "${ROK_KERNEL_DIRECTORY:-}" ]; then
    has_drivers "$ROK_KERNEL_DIRECTORY" || missing "$ROK_KERNEL_DIRECTORY has no kernel with ublk_drv"
    kernel=$ROK_KERNEL_DIRECTORY
    return
  fi
  mkdir -p "$cache"
  # What an earlier run has downloaded will do; it also serves without a network.
  kernel=$(find "$cache" -maxdepth 1 -type d -name "linux-image-$series_glob.*" | sort -rV | head -1)
  [ -z "$kernel" ] || return 0
  command -v apt-get >/dev/null ||
    missing 'apt-get is not there, so that no kernel can be downloaded; set ROK_KERNEL_DIRECTORY'
  if [ -z "$(kernel_versions)" ] && [ "$(id -u)" = 0 ]; then timeout 300 apt-get -qq update >/dev/null 2>&1 || true; fi
  fetch_newest || { use_newer_lists && fetch_newest; } ||
    missing "no linux-image-$series_glob.*-cloud-amd64 could be downloaded; run apt-get update, or set ROK_KERNEL_DIRECTORY"
}
