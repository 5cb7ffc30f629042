# Vocabulary of the scripts that run in the emulated machine. A busybox shell sources it.

# say TEXT: a line for the person.
say() { read -r uptime _ </proc/uptime; echo "NOTE [$uptime s] $*"; }

# pass NAME, fail NAME [REASON], skip NAME REASON: one result.
pass() { read -r uptime _ </proc/uptime; echo "PASS $1 [$uptime s]"; }
fail() { echo "FAIL $1: ${2:-}"; dmesg | tail -20 | quote; }

# quote: marks lines as a person's reading, so that none is taken for a result.
quote() { sed 's/^/| /'; }
skip() { echo "SKIP $1: $2"; }

# stage NAME COMMAND [ARGUMENT]...: one result, by the command's success. It runs in a shell of its own that ends at
# the first error.
stage() {
  name=$1
  shift
  # Not part of a condition, since that would switch off "set -e" inside.
  (set -e; "$@") >/run/stage.log 2>&1
  status=$?
  if [ "$status" = 0 ]; then pass "$name"; else quote </run/stage.log; fail "$name" "status $status"; fi
}

# same_bytes FILE DEVICE: the device begins with the file's content, read past the page cache.
same_bytes() { dd if="$2" bs=1M iflag=direct count="$(($(stat -c %s "$1") >> 20))" 2>/dev/null | cmp "$1" -; }

# await_line FD PATTERN: reads lines until one matches, at most 60 s between two; the line is in $line.
await_line() {
  while read -r -t 60 line <&"$1"; do
    case $line in $2) return 0 ;; esac
  done
  return 1
}

# kernel_is_calm PATTERN: the kernel's log has no line that matches.
kernel_is_calm() { ! dmesg | grep -E "$1"; }
