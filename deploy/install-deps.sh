#!/usr/bin/env bash
# Installs the system packages that building, trying and testing rok-blk need.
#
#   deploy/install-deps.sh GROUP...     groups: build try test ci
#
# Every need is probed first (a command, a header, a library), whoever installed it. Only what is missing
# is asked from apt, so a second run changes nothing and takes a few milliseconds, and a machine without
# apt works too as soon as it has the tools.
set -euo pipefail

# The licence and dependency check of CI; pinned so that a new release cannot turn CI red.
readonly CARGO_DENY_VERSION=0.20.2
# It builds and runs the fuzz targets.
readonly CARGO_FUZZ_VERSION=0.13.2

# One need a line: its Debian and Ubuntu package, then how to see that it is there.
#   command NAME   a program on the path          file GLOB...   a file; any of the globs
#   static NAME    a program without libraries    library GLOB   libclang, or LIBCLANG_PATH is set
# Who needs what to build: RocksDB a C++ compiler, AWS-LC a C compiler (cmake where its own build script does
# not know the target), bindgen of RocksDB and libublk libclang with clang's headers and the kernel's.
readonly BUILD_NEEDS='
gcc               command cc
g++               command c++
libc6-dev         file /usr/include/stdlib.h /usr/include/*/stdlib.h
linux-libc-dev    file /usr/include/linux/blkzoned.h
make              command make
cmake             command cmake
pkg-config        command pkg-config
clang             command clang
libclang-dev      library /usr/lib/llvm-*/lib/libclang*.so* /usr/lib*/libclang*.so* /usr/lib/*/libclang*.so*
ca-certificates   file /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem
'
# The commands that `make run` suggests to try.
readonly TRY_NEEDS='
qemu-utils        command qemu-img
libnbd-bin        command nbdinfo
'
readonly TEST_NEEDS='
qemu-utils        command qemu-nbd
libnbd-bin        command nbdcopy
nbdkit            command nbdkit
nbd-client        command nbd-client
fio               command fio
jq                command jq
curl              command curl
python3           command python3
qemu-system-x86   command qemu-system-x86_64
busybox-static    static busybox
cpio              command cpio
xz-utils          command xz
zstd              command zstd
e2fsprogs         command mke2fs
xfsprogs          command mkfs.xfs
fuse3             command fusermount3
mmdebstrap        command mmdebstrap
uidmap            command newuidmap
debian-archive-keyring  file /usr/share/keyrings/debian-archive-keyring.gpg
util-linux        command flock
procps            command ps
openssl           command openssl
valgrind          command valgrind
strace            command strace
systemd           command systemd-analyze
udev              file /bin/udevadm /usr/bin/udevadm
'
readonly CI_NEEDS='
git               command git
shellcheck        command shellcheck
'

say() { printf 'install-deps: %s\n' "$*" >&2; }

# Programs of administrators are not on everybody's path on Debian.
PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

needs_of_group() {
    case $1 in
    build) echo "$BUILD_NEEDS" ;;
    try) echo "$TRY_NEEDS" ;;
    test) echo "$TEST_NEEDS" ;;
    ci) echo "$CI_NEEDS" ;;
    *)
        say "there is no group '$1'; the groups are: build try test ci"
        exit 2
        ;;
    esac
}

any_file() {
    local path
    for path in "$@"; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

is_static_program() {
    local path
    path=$(command -v "$1") && ! ldd "$path" >/dev/null 2>&1
}

is_there() {
    local kind=$1
    shift
    case $kind in
    command) command -v "$1" >/dev/null ;;
    file) any_file "$@" ;;
    library) [ -n "${LIBCLANG_PATH:-}" ] || any_file "$@" ;;
    static) is_static_program "$1" ;;
    *)
        say "unknown probe '$kind'"
        exit 2
        ;;
    esac
}

# Prints the packages of the groups whose probe fails.
missing_packages() {
    local group package probe
    for group in "$@"; do
        while read -r package probe; do
            [ -n "$package" ] || continue
            # Unquoted: the probe is words, and its globs expand here.
            # shellcheck disable=SC2086
            is_there $probe || echo "$package"
        done <<<"$(needs_of_group "$group")"
    done | sort -u
}

# Every package that some group names.
packages_of_all_groups() { awk 'NF { print $1 }' <<<"$BUILD_NEEDS$TRY_NEEDS$TEST_NEEDS$CI_NEEDS"; }

# apt takes packages away that do not go with the new ones, such as a backport of qemu-utils when qemu-system-x86 comes.
# What we need ourselves comes back in the next round; anything else is the user's decision.
refuse_removals() {
    local -a removed
    mapfile -t removed < <(apt-get -qq -s --no-install-recommends install "$@" | awk '$1 == "Remv" { print $2 }' |
        grep -vxFf <(packages_of_all_groups))
    [ ${#removed[@]} -gt 0 ] || return 0
    say "apt would remove ${removed[*]} to install: $*"
    say "please decide yourself: apt-get install --no-install-recommends $*"
    exit 1
}

install_packages() {
    local -a as_root=()
    if ! command -v apt-get >/dev/null; then
        say "this system has no apt. Please install what Debian calls: $*"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "not root, and there is no sudo. As root, please run: apt-get install --no-install-recommends $*"
            exit 1
        fi
        as_root=(sudo)
    fi
    say "installing: $*"
    # The lock's timeout: another apt (unattended upgrades) may hold it for a while.
    "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update
    refuse_removals "$@"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "$@" >&2
}

check_rust() {
    if ! command -v cargo >/dev/null; then
        say "there is no cargo. Please install Rust as https://rustup.rs says; rust-toolchain.toml names the version."
        exit 1
    fi
}

# install_cargo_command NAME VERSION
install_cargo_command() {
    local installed
    installed=$(cargo "$1" --version 2>/dev/null || true)
    [ "$installed" != "cargo-$1 $2" ] || return 0
    say "building cargo-$1 $2 (once, some minutes)"
    cargo install --quiet --locked "cargo-$1@$2"
}

main() {
    local group
    local -a missing
    if [ $# = 0 ]; then
        say "usage: deploy/install-deps.sh GROUP...; the groups are: build try test ci"
        exit 2
    fi
    for group in "$@"; do
        needs_of_group "$group" >/dev/null
    done
    # A second round, since the first may have replaced what was there.
    for _ in 1 2; do
        mapfile -t missing < <(missing_packages "$@")
        [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
    done
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} -gt 0 ]; then
        say "still not there after the installation: ${missing[*]}"
        exit 1
    fi
    for group in "$@"; do
        case $group in
        build) check_rust ;;
        ci)
            install_cargo_command deny "$CARGO_DENY_VERSION"
            install_cargo_command fuzz "$CARGO_FUZZ_VERSION"
            ;;
        esac
    done
}

main "$@"
