#!/usr/bin/env bash
# Deletes the pool and the key file that `make run` created, after asking. Nothing else deletes a pool.
#
# Refuses while the pool is served, and keeps it from being served while it is deleted. Locks tell: a daemon hides its
# open files from everybody but root, as it hides its memory.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

# Takes the lock that the daemon of `make run` holds, until this script ends.
keep_daemons_out() {
    exec 9>>"$1/lock"
    if ! flock --exclusive --nonblock 9; then
        say "The pool in $1 is served. Stop the daemon first (Ctrl-C in the terminal of make run)."
        exit 7
    fi
}

# Whoever serves the pool without knowing of that lock (`rok-blk serve`) has locked its devices, with locks of open
# file descriptions. Only the inode's number is compared: on some file systems the kernel names another device here than
# to programs, and at worst this refuses too much.
refuse_if_devices_are_locked() {
    local locked
    locked=$(find "$1" -xdev -type f -printf '%i %p\n' | awk '
        FILENAME == "/proc/locks" { if ($2 == "OFDLCK") { split($6, place, ":"); inodes[place[3]] } next }
        $1 in inodes { sub(/^[0-9]+ /, ""); print }' /proc/locks -)
    if [ -n "$locked" ]; then
        say "$locked is locked: its pool is served. Stop that daemon first."
        exit 7
    fi
}

main() {
    local data_home=${XDG_DATA_HOME:-${HOME:?HOME is not set}/.local/share}
    local directory=$data_home/rok-blk
    local real answer
    case $data_home in
    /*) ;;
    *)
        say "XDG_DATA_HOME is not an absolute path: $data_home"
        exit 2
        ;;
    esac
    if [ ! -e "$directory" ]; then
        say "There is no pool at $directory; nothing to delete."
        exit 0
    fi
    if [ -L "$directory" ] || [ ! -d "$directory" ]; then
        say "$directory is not a directory of its own; delete by hand what it points to."
        exit 1
    fi
    # What the kernel calls it, whatever links lead there.
    real=$(cd "$directory" && pwd -P)
    keep_daemons_out "$real"
    refuse_if_devices_are_locked "$real"
    say "This deletes for good: $directory ($(du -sh "$real" | cut -f1)), all volumes and the key file in it."
    printf 'Type "delete" to go on: ' >&2
    read -r answer || answer=
    if [ "$answer" != delete ]; then
        say "Nothing was deleted."
        exit 1
    fi
    # The question may have waited for long.
    refuse_if_devices_are_locked "$real"
    # The lock goes last: until then it keeps a starting daemon out of what is half deleted.
    find "$real" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf --one-file-system -- {} +
    rm -f -- "$real/lock"
    rmdir -- "$real"
    say "Deleted $directory."
}

main "$@"
