# In an emulated machine with little memory: a file system on a disk of ours is written while there is almost none left, and
# what there is is dirty; a process that wants more is killed. Nothing hangs, and the daemon goes on.
#
# ROK_MEMORY_SECONDS says how long (15).

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

seconds=${ROK_MEMORY_SECONDS:-15}
# What the machine has left before the load begins, in MiB.
left_mib=80
files=6

volume_is_mounted() {
  rok-blk create vol1 --size 400M
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  /sbin/mke2fs -q -t ext4 /dev/ublkb0
  mount -t ext4 /dev/ublkb0 /mnt
  dd if=/dev/urandom of=/run/block bs=1M count=8 2>/dev/null
}

# memory WHAT FILE: a line of /proc/meminfo or a process's status, in KiB.
memory() { sed -n "s/^$1:[[:space:]]*\([0-9]*\) kB/\1/p" "$2"; }

memory_is_locked() {
  file=/proc/$daemon/status
  grep -E '^(VmSize|VmRSS|VmLck)' "$file"
  # What is locked is counted by what could be used of it.
  [ "$(memory VmLck "$file")" -ge "$(memory VmRSS "$file")" ]
}

# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of linux/sched.h, which is what PR_SET_IO_FLUSHER sets; of each thread, since each
# may serve a request. The flags are the seventh field behind the name.
threads_are_io_flushers() {
  for task in "/proc/$daemon/task"/*; do
    flags=$(sed 's/.*) //' "$task/stat" | cut -d' ' -f7)
    [ $((flags & 0x180000)) = $((0x180000)) ] || { echo "$(cat "$task/comm"): $flags"; return 1; }
  done
  echo "$(ls "/proc/$daemon/task" | wc -l) threads"
}

daemon_is_killed_last() { [ "$(cat "/proc/$daemon/oom_score_adj")" = -999 ]; }

# From here on half of the memory may be dirty before a writer has to wait, and a few MiB are free. The daemon has served next to
# nothing so far: what it needs for more it has, or gets when there is nothing left.
little_is_kept_free() {
  echo 4096 >/proc/sys/vm/min_free_kbytes
  echo 20 >/proc/sys/kernel/hung_task_timeout_secs
  echo 50 >/proc/sys/vm/dirty_ratio
  echo 40 >/proc/sys/vm/dirty_background_ratio
  grep -E '^(VmRSS|RssAnon|RssShmem)' "/proc/$daemon/status"
}

memory_is_filled() {
  echo 3 >/proc/sys/vm/drop_caches
  mkdir /run/filled
  mount -t tmpfs -o size=100% filled /run/filled
  dd if=/dev/zero of=/run/filled/zeros bs=1M count=$((($(memory MemAvailable /proc/meminfo) >> 10) - left_mib)) 2>/dev/null
  grep -E '^(MemFree|MemAvailable|Shmem)' /proc/meminfo
}

# write_files: each is a number and the block; some are synced. Ends at the first that fails.
write_files() {
  count=0
  while [ ! -e /run/end ]; do
    { echo "$count"; cat /run/block; } >"/mnt/$((count % files))" || return 1
    echo "$count" >"/run/written-$((count % files))"
    [ $((count % 16)) != 15 ] || sync || return 1
    read -r now _ </proc/uptime
    echo "$now $(memory MemFree /proc/meminfo) $(memory Dirty /proc/meminfo) $(memory Writeback /proc/meminfo)" >>/run/beats
    count=$((count + 1))
  done
}

# await_files COUNT: until the writer has written so many more.
await_files() { await_lines /run/beats "$1" "$writer" 120; }

# The time is what the load is to last: there is nothing to wait for.
load_goes_on_for_a_while() {
  sleep "$seconds"
  await_files $((2 * left_mib / 8))
}

# Until the kernel kills what wants it.
more_memory_is_wanted() {
  status=0
  awk 'BEGIN { text = "0123456789abcdef"; while (1) text = text text }' || status=$?
  [ "$status" = 137 ]
  await_files "$files"
}

tell_of_load() {
  say "$(wc -l </run/beats) files of 8 MiB; the daemon had at most $(memory VmHWM "/proc/$daemon/status") KiB"
  say "$(awk '{ dirty = $3 + $4; if (dirty / $2 > most) { most = dirty / $2; line = dirty " KiB dirty with " $2 " KiB free" }
    if (before && $1 - before > longest) longest = $1 - before; before = $1 }
    END { printf "most pressure: %s; longest time for a file: %.1f s", line, longest }' /run/beats)"
}

load_went_on() {
  [ "$writer_status" = 0 ]
  kill -0 "$daemon"
  [ "$(ls /run/written-* | wc -l)" = "$files" ]
  # More was dirty than there was memory left, and more at an instant than was free.
  [ "$(wc -l </run/beats)" -gt $((2 * left_mib / 8)) ]
  awk '$3 + $4 > $2 { found = 1 } END { exit !found }' /run/beats
}

killed_were_others() {
  dmesg | grep -E 'Out of memory: Killed process' >/run/kills
  cat /run/kills
  ! grep -v '(awk)' /run/kills
}

filesystem_is_whole() {
  umount /mnt
  /sbin/e2fsck -f -n /dev/ublkb0
  echo 3 >/proc/sys/vm/drop_caches
  mount -t ext4 -o ro /dev/ublkb0 /mnt
  for number in $(seq 0 $((files - 1))); do
    { cat "/run/written-$number"; cat /run/block; } | cmp - "/mnt/$number"
  done
  umount /mnt
}

# Without the capability and with a limit: it serves, and tells what is missing.
what_is_refused_is_told() {
  grep 'IO flushers.*CAP_SYS_RESOURCE' /run/daemon.log
  grep 'oom_score_adj.*OOMScoreAdjust=-999' /run/daemon.log
  grep 'RLIMIT_MEMLOCK is 65536 bytes' /run/daemon.log
  [ "$(memory VmLck "/proc/$daemon/status")" = 0 ]
  [ "$(cat "/proc/$daemon/oom_score_adj")" = 0 ]
  dd if=/dev/ublkb0 of=/dev/null bs=1M count=1 iflag=direct
}

pool_is_whole() { rok-blk check --pool "$pool" --key-file "$key"; }

under_pressure() {
  : >/run/beats
  write_files 2>/run/writer.log &
  writer=$!
  stage while load_goes_on_for_a_while
  stage wanted more_memory_is_wanted
  touch /run/end
  wait "$writer"
  writer_status=$?
  tell_of_load
}

stage pool make_pool
if start_daemon; then
  pass start
  stage mounted volume_is_mounted
  stage locked memory_is_locked
  stage io-flushers threads_are_io_flushers
  stage killed-last daemon_is_killed_last
  stage limits little_is_kept_free
  say "the daemon has $(memory VmRSS "/proc/$daemon/status") KiB"
  stage filled memory_is_filled
  under_pressure
  stage load load_went_on
  stage killed killed_were_others
  rm -r /run/filled/zeros
  stage whole filesystem_is_whole
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  : >/run/daemon.log
  ulimit -l 64
  as='/usr/bin/setpriv --bounding-set -sys_resource --inh-caps -sys_resource'
  if start_daemon; then pass start-limited; else fail start-limited "$(tail -5 /run/daemon.log)"; fi
  stage refused what_is_refused_is_told
  if stop_daemon; then pass end-limited; else fail end-limited "$(tail -5 /run/daemon.log)"; fi
  stage pool-whole pool_is_whole
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
