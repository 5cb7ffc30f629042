#!/usr/bin/env bash
# Deletes the pool and the key file that `make run` created, after asking. Nothing else deletes a pool.
#
# Refuses while a process has a file of the directory open (a running daemon holds its pool open and locked).
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

# Prints the ids of the processes that have a file under the directory open. Without root these are the
# user's own; the daemon of `make run` is one of them.
processes_using() {
    local descriptor target
    for descriptor in /proc/[0-9]*/fd/*; do
        target=$(readlink "$descriptor" 2>/dev/null) || continue
        case $target in
        "$1"/*) echo "$descriptor" | cut -d/ -f3 ;;
        esac
    done | sort -un
}

main() {
    local data_home=${XDG_DATA_HOME:-${HOME:?HOME is not set}/.local/share}
    local directory=$data_home/rok-blk
    local real users answer
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
    users=$(processes_using "$real" | tr '\n' ' ')
    if [ -n "$users" ]; then
        say "$directory is in use by process $users- stop it first (Ctrl-C in the terminal of make run)."
        exit 7
    fi
    say "This deletes for good: $directory ($(du -sh "$real" | cut -f1)), all volumes and the key file in it."
    printf 'Type "delete" to go on: ' >&2
    read -r answer || answer=
    if [ "$answer" != delete ]; then
        say "Nothing was deleted."
        exit 1
    fi
    rm -rf --one-file-system -- "$real"
    say "Deleted $directory."
}

main "$@"
