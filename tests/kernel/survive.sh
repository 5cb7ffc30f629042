# In the emulated machine: disks outlive the daemon. It is killed and restarted at random moments while a file system is
# written and a raw disk is verified, without an error for either; then the states in which a start may find its disks.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

kills=${ROK_KILLS:-10}
planned_restarts=${ROK_PLANNED_RESTARTS:-1}
# What to do: the restarts under load, the states that a start may find, or both.
parts=${ROK_SURVIVE_PARTS:-load,states}
files=24

make_volumes() {
  for name in vol1 vol2; do rok-blk create "$name" --size 256M; done
  for name in vol3 vol4 vol5; do rok-blk create "$name" --size 64M; done
}

disks_are_attached() {
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  # Fewer tags than the load has requests: all of them are under way at each moment.
  [ "$(rok-blk attach vol2 --depth 16)" = /dev/ublkb1 ]
  [ "$(stat -c %a "$pool/attachments.json")" = 600 ]
  /sbin/mke2fs -q -t ext4 /dev/ublkb0
  mount -t ext4 /dev/ublkb0 /mnt
}

kill_daemon() {
  kill -KILL "$daemon"
  wait "$daemon"
}

# The daemon's end must not come at the same point each time; there is nothing to wait for.
random_pause() { sleep "$((RANDOM % 2)).$((RANDOM % 10))"; }

# write_and_check: writes files until /run/end is there, keeps what each must be, and reads another one back each time. Ends
# at the first that fails or differs.
write_and_check() {
  count=0
  while [ ! -e /run/end ]; do
    dd if=/dev/urandom of=/run/block bs=64k count=$((1 + RANDOM % 16)) 2>/dev/null
    dd if=/run/block of=/mnt/new bs=64k conv=fsync || return 1
    mv /mnt/new "/mnt/$((count % files))" || return 1
    sha256sum </run/block >"/run/hashes/$((count % files))"
    count=$((count + 1))
    other=$((RANDOM % files))
    if [ "$other" -lt "$count" ]; then
      dd if="/mnt/$other" bs=64k iflag=direct | sha256sum | cmp - "/run/hashes/$other" || return 1
    fi
    read -r now _ </proc/uptime
    echo "$now" >>/run/beats
  done
}

# probe: one request after the other, a read of a block of a file and a write of it, neither of which has the machine do much. A line
# in /run/probes for each pair: what lies between two is how long a request waited.
probe() {
  while [ ! -e /run/end ]; do
    dd if=/mnt/probe of=/run/probe-read bs=4k iflag=direct || return 1
    cmp /run/probe /run/probe-read || return 1
    dd if=/run/probe of=/mnt/probe bs=4k oflag=direct conv=notrunc || return 1
    read -r now _ </proc/uptime
    echo "$now" >>/run/probes
    sleep 0.1
  done
}

# stall FILE SINCE: the longest time between two lines of a file, of which the second came later than that, in seconds.
stall() {
  awk -v since="$2" '$1 >= since && before && $1 - before > longest { longest = $1 - before } { before = $1 }
    END { printf "%.1f", longest }' "$1"
}

# cycle NAME END: the daemon ends by the function END and is started again, under load.
cycle() {
  random_pause
  read -r began _ </proc/uptime
  "$2"
  # What the probe waits for now is done by then, and told.
  if start_daemon && await_files 3 && await_lines /run/probes 2 "$probe"; then
    pass "$1"
    say "longest stall of a request $(stall /run/probes "$began") s; of a file of up to 1 MiB, made, written, read and hashed, $(
      stall /run/beats "$began") s"
  else
    fail "$1" "$(tail -5 /run/daemon.log) $(tail -2 /run/writer.log) $(tail -2 /run/probe.log)"
    return 1
  fi
}

# Another one is killed while it starts: before it has the disks, among them, or behind them.
kill_two_daemons() {
  kill_daemon
  rok-blk serve --pool "$pool" --key-file "$key" --lanes 2 </dev/null >/dev/null 2>>/run/daemon.log &
  daemon=$!
  random_pause
  kill_daemon
}

load_went_on() {
  [ "$probe_status" = 0 ] || { tail -5 /run/probe.log; return 1; }
  [ "$writer_status" = 0 ] || { tail -5 /run/writer.log; return 1; }
  [ "$raw_status" = 0 ] || { tail -5 /run/raw.log; return 1; }
  echo "$(wc -l </run/beats) files, $(wc -l </run/raw-rounds) rounds of raw load, $(wc -l </run/probes) probes"
  [ "$(ls /run/hashes | wc -l)" = "$files" ]
}

filesystem_is_whole() {
  umount /mnt
  /sbin/e2fsck -f -n /dev/ublkb0
  echo 3 >/proc/sys/vm/drop_caches
  mount -t ext4 -o ro /dev/ublkb0 /mnt
  for name in $(ls /run/hashes); do sha256sum <"/mnt/$name" | cmp - "/run/hashes/$name"; done
  umount /mnt
}

message_names_the_disks() { grep -q '/dev/ublkb0.* in use: requests wait' /run/daemon.log; }

# With a driver that can do that, from 7.0 on, a daemon answers what is in flight before it leaves. (The daemon asks the driver.)
disks_were_quiesced() {
  case $(uname -r) in
    [0-6].*)
      echo "the driver of $(uname -r) cannot quiesce"
      ! grep 'device was quiesced' /run/daemon.log
      ;;
    *)
      for number in 0 1; do grep "device was quiesced.*device=$number" /run/daemon.log; done
      ! grep 'come to the next daemon again' /run/daemon.log
      ;;
  esac
}

# states: number and state of each device.
states() { rok-blk devices -o jsonl | sed -n 's/.*"id":\([0-9]*\),.*"state":"\([a-z]*\)".*/\1 \2/p'; }

# uuid_of NAME: of a volume that is attached.
uuid_of() { rok-blk devices -o jsonl | sed -n "s/.*\"ref\":\"$1\",\"volume_uuid\":\"\([^\"]*\)\".*/\1/p"; }

unused_disks_are_made() {
  rok-blk attach vol3 --id 9 --queues 1 --depth 32
  dd if=/dev/urandom of=/run/data bs=1M count=4 2>/dev/null
  dd if=/run/data of=/dev/ublkb9 bs=1M 2>/dev/null
  rok-blk snapshot vol3
  rok-blk attach vol3@1 --id 10
  rok-blk attach vol4 --id 12 --once
}

unused_disks_are_gone() { [ "$(find /dev -name 'ublk[bc]*')" = '' ]; }

unused_disks_are_back() {
  [ "$(states)" = "0 live
1 live
9 live
10 live" ]
  rok-blk devices -o jsonl | grep '"id":9,' | grep '"queues":1,"depth":32'
  [ "$(cat /sys/block/ublkb10/ro)" = 1 ]
  same_bytes /run/data /dev/ublkb9
  same_bytes /run/data /dev/ublkb10
  rok-blk detach vol3@1
  refused rok-blk rm vol3
}

detached_disk_is_forgotten() {
  [ "$(states)" = "0 live
1 live
9 live" ]
  same_bytes /run/data /dev/ublkb9
}

# Without the file the daemon does not know its disks, and they wait.
volume_is_removed_under_a_disk_that_waits() {
  [ -z "$(rok-blk devices -q)" ]
  [ -b /dev/ublkb9 ]
  rok-blk rm vol3 --now
}

disk_without_volume_is_taken_away() {
  [ "$(states)" = "0 live
1 live" ]
  [ ! -e /dev/ublkb9 ]
  grep 'ublkb9' /run/daemon.log | grep 'not there any more'
  [ "$reader_status" != 0 ]
}

numbers_are_noted() {
  rok-blk attach vol4 --id 5
  rok-blk attach vol5 --id 6
  uuid_of vol4 >/run/uuid4
  uuid_of vol5 >/run/uuid5
  [ "$(wc -c </run/uuid4)" = 37 ]
  rok-blk detach vol5
}

disk_of_another_is_left_alone() {
  rok-blk devices 2>&1 | grep 'belongs to another program'
  states | grep '^5 taken'
  fails 5 'belongs to another program' rok-blk attach vol5
  fails 5 'kept for what was attached' rok-blk attach vol4 --id 5
  [ "$(rok-blk detach vol5)" = /dev/ublkb5 ]
  [ -b /dev/ublkb5 ]
}

own_disk_is_found_again() { states | grep '^5 live'; }

disk_that_cannot_be_taken_over_waits() {
  states | grep '^5 quiesced'
  refused rok-blk attach vol4
  fails 7 'attached as /dev/ublkb5' rok-blk rm vol4
  fails 7 'waits for that' rok-blk attach vol4 --read-only
  # The lowest number that is free and not kept for somebody.
  [ "$(rok-blk attach vol5)" = /dev/ublkb2 ]
  rok-blk detach vol5
  mv /dev/hidden /dev/ublkc5
  [ "$(rok-blk attach vol4)" = /dev/ublkb5 ]
  states | grep '^5 live'
  dd if=/run/data of=/dev/ublkb5 bs=1M oflag=direct
  same_bytes /run/data /dev/ublkb5
}

disk_that_waits_is_given_up() {
  dd if=/run/data of=/dev/ublkb5 bs=1M count=1 oflag=direct 2>/run/dd.log &
  user=$!
  # Until it has it open.
  until ls -l "/proc/$user/fd" 2>/dev/null | grep -q ublkb5; do kill -0 "$user"; done
  fails 7 'have it open' rok-blk detach vol4
  [ "$(rok-blk detach vol4 --force)" = /dev/ublkb5 ]
  refused wait "$user"
  [ ! -e /dev/ublkb5 ]
  rm -f /dev/hidden
  ! states | grep '^5 '
}

damaged_file_is_kept_aside() {
  [ -z "$(rok-blk devices -q)" ]
  [ "$(cat "$pool/attachments.json.unread")" = '{' ]
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  /sbin/e2fsck -f -n /dev/ublkb0
}

pool_is_whole() {
  [ "$(find /dev -name 'ublk[bc]*')" = '' ]
  rok-blk check --pool "$pool" --key-file "$key"
}

# restarted NAME: the daemon starts.
restarted() { if start_daemon; then pass "$1"; else fail "$1" "$(tail -5 /run/daemon.log)"; fi; }

under_load() {
  mkdir /run/hashes
  : >/run/beats
  : >/run/raw-rounds
  : >/run/probes
  dd if=/dev/urandom of=/run/probe bs=4k count=1 2>/dev/null
  dd if=/run/probe of=/mnt/probe bs=4k conv=fsync 2>/dev/null
  probe 2>/run/probe.log &
  probe=$!
  write_and_check 2>/run/writer.log &
  writer=$!
  raw=''
  if [ -x /usr/bin/fio ]; then
    verify_raw /dev/ublkb1 6M 64M >/run/raw.log 2>&1 &
    raw=$!
  else
    skip raw 'fio is not installed'
  fi
  for number in $(seq "$kills"); do
    end=kill_daemon
    [ $((number % 3)) != 0 ] || end=kill_two_daemons
    cycle "kill-$number" "$end" || break
  done
  for number in $(seq "$planned_restarts"); do cycle "planned-$number" stop_daemon || break; done
  # All files have been written once.
  until [ "$(ls /run/hashes | wc -l)" = "$files" ]; do await_files 3 || break; done
  touch /run/end
  wait "$writer"
  writer_status=$?
  wait "$probe"
  probe_status=$?
  raw_status=0
  if [ -n "$raw" ]; then
    wait "$raw"
    raw_status=$?
  fi
}

in_other_states() {
  stage unused unused_disks_are_made
  if stop_daemon; then pass stop-unused; else fail stop-unused "$(tail -5 /run/daemon.log)"; fi
  stage gone unused_disks_are_gone
  restarted start-unused
  stage back unused_disks_are_back
  kill_daemon
  restarted start-forgotten
  stage forgotten detached_disk_is_forgotten
  kill_daemon
  mv "$pool/attachments.json" /run/attachments.json
  restarted start-unknown
  stage unknown volume_is_removed_under_a_disk_that_waits
  dd if=/dev/ublkb9 of=/dev/null bs=4096 count=1 iflag=direct 2>/run/reader.log &
  reader=$!
  if stop_daemon; then pass stop-unknown; else fail stop-unknown "$(tail -5 /run/daemon.log)"; fi
  mv /run/attachments.json "$pool/attachments.json"
  restarted start-without-volume
  wait "$reader"
  reader_status=$?
  stage without-volume disk_without_volume_is_taken_away
  stage noted numbers_are_noted
  kill_daemon
  cp "$pool/attachments.json" /run/attachments.json
  sed -i "s/$(cat /run/uuid4)/$(cat /run/uuid5)/" "$pool/attachments.json"
  restarted start-taken
  stage taken disk_of_another_is_left_alone
  kill_daemon
  mv /run/attachments.json "$pool/attachments.json"
  restarted start-own
  stage own own_disk_is_found_again
  for name in waits given-up; do
    kill_daemon
    mv /dev/ublkc5 /dev/hidden
    restarted "start-$name"
    if [ "$name" = waits ]; then
      stage waits disk_that_cannot_be_taken_over_waits
    else
      stage given-up disk_that_waits_is_given_up
    fi
  done
  if stop_daemon; then pass stop-last; else fail stop-last "$(tail -5 /run/daemon.log)"; fi
  echo '{' >"$pool/attachments.json"
  restarted start-damaged
  stage damaged damaged_file_is_kept_aside
}

stage pool make_pool
if start_daemon; then
  pass start
  stage volumes make_volumes
  stage attach disks_are_attached
  case $parts in
    *load*)
      under_load
      stage load load_went_on
      stage message message_names_the_disks
      stage quiesced disks_were_quiesced
      stage whole filesystem_is_whole
      stage calm kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
      ;;
    *) umount /mnt ;;
  esac
  case $parts in *states*) in_other_states ;; esac
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  stage pool-whole pool_is_whole
  # Users of a disk that was taken away got errors.
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more'
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
