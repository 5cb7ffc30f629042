# In the emulated machine: volumes as disks of the kernel's NBD client, /dev/nbdN, which outlive the daemon as those of ublk
# do; and nbd-client, whose disks are its own.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

# state_of ID: of the disk with this number.
state_of() { rok-blk devices -o jsonl | sed -n "s/.*\"id\":$1,.*\"state\":\"\([a-z]*\)\".*/\1/p"; }

# becomes STATE ID: waits until it does, at most 200 looks.
becomes() {
  looks=0
  until [ "$(state_of "$2")" = "$1" ]; do
    looks=$((looks + 1))
    [ "$looks" -lt 200 ] || { rok-blk devices; return 1; }
    sleep 0.1
  done
}

make_volumes() {
  rok-blk create vol1 --size 32M
  rok-blk create vol2 --size 32M
  rok-blk create vol4k --size 64M --sector-size 4096
}

attach_prints_the_path() {
  [ "$(rok-blk attach vol1 --nbd)" = /dev/nbd0 ]
  [ "$(rok-blk attach vol1 --nbd)" = /dev/nbd0 ]
  [ "$(blockdev --getsize64 /dev/nbd0)" = $((32 << 20)) ]
  queue=/sys/block/nbd0/queue
  [ "$(cat "$queue/logical_block_size")" = 512 ]
  [ "$(cat "$queue/write_cache")" = 'write back' ]
  [ "$(cat "$queue/fua")" = 1 ]
  grep -x 'rok-blk:[0-9a-f-]\{36\}' /sys/block/nbd0/backend
  [ "$(stat -c %a "$pool/nbd-attachments.json")" = 600 ]
  [ "$(rok-blk attach vol4k --nbd --id 20)" = /dev/nbd20 ]
  [ "$(cat /sys/block/nbd20/queue/logical_block_size)" = 4096 ]
  [ "$(rok-blk devices -q)" = "/dev/nbd0
/dev/nbd20" ]
  rok-blk devices -o jsonl | grep '"device":"/dev/nbd20","driver":"nbd"' | grep '"state":"live"'
  fails 7 'by another driver' rok-blk attach vol1
  fails 7 'is attached already' rok-blk attach vol1 --nbd --id 5
  fails 7 'is attached already' rok-blk attach vol1 --nbd --read-only
  [ "$(rok-blk detach /dev/nbd20)" = /dev/nbd20 ]
  [ ! -e /sys/block/nbd20/pid ]
  fails 4 'is not attached' rok-blk detach vol4k
}

# The message where ublk is missing names the other way.
missing_driver_is_named() {
  mv /dev/ublk-control /dev/hidden
  bad=0
  fails 13 'attach --nbd' rok-blk attach vol4k || bad=1
  mv /dev/hidden /dev/ublk-control
  [ "$bad" = 0 ]
}

filesystem_is_made_and_written() {
  /sbin/mke2fs -q -t ext4 /dev/nbd0
  mount -t ext4 /dev/nbd0 /mnt
  dd if=/dev/urandom of=/run/data bs=1M count=4 2>/dev/null
  dd if=/run/data of=/mnt/data bs=1M conv=fsync 2>/dev/null
  rok-blk devices
}

snapshot_attaches_beside_the_mounted_volume() {
  fsfreeze --freeze /mnt
  dd if=/dev/nbd0 of=/run/disk bs=1M count=8 iflag=direct 2>/dev/null
  rok-blk snapshot vol1 | grep -x vol1@1
  fsfreeze --unfreeze /mnt
  snapshot=$(rok-blk attach vol1@1 --nbd)
  [ "$(cat "/sys/block/${snapshot##*/}/ro")" = 1 ]
  same_bytes /run/disk "$snapshot"
  rm /run/disk
  refused dd if=/dev/zero of="$snapshot" bs=4096 count=1 oflag=direct
  fails 7 "$snapshot" rok-blk rm vol1@1
  [ "$(rok-blk detach "$snapshot")" = "$snapshot" ]
}

volume_that_is_attached_is_not_taken_away() {
  fails 7 'attached as /dev/nbd0' rok-blk rm vol1
  fails 7 'attached as /dev/nbd0' rok-blk rollback vol1 --to 1
  fails 7 'attached as /dev/nbd0' rok-blk resize vol1 16M --shrink --yes
  fails 7 '/dev/nbd0' rok-blk key lock
  fails 7 'in use' rok-blk detach vol1
  fails 7 'in use' rok-blk detach /dev/nbd0
  # No policy of an export ends it.
  rok-blk unexport vol1 --force
  rok-blk export vol1
  [ "$(state_of 0)" = live ]
  dd if=/mnt/data bs=1M iflag=direct 2>/dev/null | cmp - /run/data
}

# Writes files until /run/end is there, and keeps what each must be. Ends at the first that fails.
write_files() {
  count=0
  while [ ! -e /run/end ]; do
    dd if=/dev/urandom of=/run/block bs=64k count=$((1 + RANDOM % 8)) 2>/dev/null
    dd if=/run/block of=/mnt/new bs=64k conv=fsync || return 1
    mv /mnt/new "/mnt/$((count % 8))" || return 1
    sha256sum </run/block >"/run/hashes/$((count % 8))"
    count=$((count + 1))
    echo >>/run/beats
  done
}

killed_under_load() {
  [ "$(rok-blk attach vol2 --nbd)" = /dev/nbd1 ]
  mkdir /run/hashes
  : >/run/beats
  write_files 2>/run/writer.log &
  writer=$!
  raw=''
  if [ -x /usr/bin/fio ]; then
    verify_raw /dev/nbd1 2M 16M >/run/raw.log 2>&1 &
    raw=$!
  fi
  await_files 3 || return 1
  kill -KILL "$daemon"
  wait "$daemon"
  read -r began _ </proc/uptime
  start_daemon && await_files 3 || return 1
  read -r ended _ </proc/uptime
  say "stall of at most $(awk "BEGIN { print $ended - $began }") s"
}

load_went_on() {
  [ "$writer_status" = 0 ] || { tail -5 /run/writer.log; return 1; }
  [ "$raw_status" = 0 ] || { tail -5 /run/raw.log; return 1; }
  becomes live 0
  [ "$(state_of 1)" = live ]
  rok-blk detach vol2
}

disk_grows_while_it_is_mounted() {
  rok-blk resize vol1 36M
  [ "$(blockdev --getsize64 /dev/nbd0)" = $((36 << 20)) ]
  # Behind the file system, which keeps its size.
  dd if=/run/data of=/dev/nbd0 bs=1M seek=32 oflag=direct 2>/dev/null
  dd if=/dev/nbd0 bs=1M skip=32 iflag=direct 2>/dev/null | cmp - /run/data
}

# A request that takes longer than the driver waits loses its connection, and is sent again over the next one.
slow_request_is_answered_in_the_end() {
  # It waits for an answer, or for room to send in.
  time_outs() { dmesg | grep -cE 'nbd0: (Connection timed out|Send .* failed)' || true; }
  before=$(time_outs)
  kill -STOP "$daemon"
  dd if=/dev/urandom of=/mnt/slow bs=1M count=1 conv=fsync 2>/run/slow.log &
  writer=$!
  # Until the driver has closed the connection: nobody else tells it.
  looks=0
  until [ "$(time_outs)" -gt "$before" ]; do
    looks=$((looks + 1))
    [ "$looks" -lt 300 ] || { kill -CONT "$daemon"; wait "$writer"; return 1; }
    sleep 0.1
  done
  kill -CONT "$daemon"
  wait "$writer"
  becomes live 0
  grep 'has a connection again' /run/daemon.log
}

mounted_filesystem_is_there_after_a_planned_restart() {
  becomes live 0
  grep '/dev/nbd0.* in use: requests wait' /run/daemon.log
  dd if=/mnt/data bs=1M iflag=direct 2>/dev/null | cmp - /run/data
  umount /mnt
  /sbin/e2fsck -f -n /dev/nbd0
  mount -t ext4 -o ro /dev/nbd0 /mnt
  for name in $(ls /run/hashes); do sha256sum <"/mnt/$name" | cmp - "/run/hashes/$name"; done
  umount /mnt
}

# nbd-client, to our socket: a disk of somebody else.
nbd_client_makes_a_disk() {
  nbd-client -unix /run/rok-blk/nbd.sock /dev/nbd1 -N vol2 -b 512
  [ "$(blockdev --getsize64 /dev/nbd1)" = $((32 << 20)) ]
  /sbin/mke2fs -q -t ext4 /dev/nbd1
  mount -t ext4 /dev/nbd1 /mnt
  dd if=/run/data of=/mnt/data bs=1M conv=fsync 2>/dev/null
  fails 7 'has a writer' rok-blk attach vol2 --nbd
  fails 5 '/dev/nbd1 is in use' rok-blk attach vol4k --nbd --id 1
  fails 4 'is not attached' rok-blk detach /dev/nbd1 --force
  # The lowest that is free.
  [ "$(rok-blk attach vol4k --nbd)" = /dev/nbd2 ]
  rok-blk detach vol4k
  umount /mnt
  mount -t ext4 -o ro /dev/nbd1 /mnt
  dd if=/mnt/data bs=1M iflag=direct 2>/dev/null | cmp - /run/data
  umount /mnt
}

disk_of_nbd_client_is_left_alone() {
  rok-blk devices 2>&1 | grep 'belongs to another program'
  [ "$(state_of 1)" = taken ]
  fails 5 'belongs to another program' rok-blk attach vol1 --nbd
  fails 5 'kept for what was attached' rok-blk attach vol4k --nbd --id 1
  [ "$(rok-blk detach vol1)" = /dev/nbd1 ]
  # It has lost its server, and is there still.
  [ -e /sys/block/nbd1/pid ]
  nbd-client -d /dev/nbd1
  [ ! -e /sys/block/nbd1/pid ]
}

unused_disk_is_made_anew() {
  [ "$(state_of 0)" = live ]
  [ -z "$(state_of 3)" ]
  /sbin/e2fsck -f -n /dev/nbd0
}

disk_that_another_program_disconnects_is_told() {
  nbd-client -d /dev/nbd0
  becomes gone 0
  rok-blk devices 2>&1 | grep 'told the driver to disconnect it'
  fails 7 'others have disconnected' rok-blk attach vol1 --nbd
  [ "$(rok-blk detach vol1)" = /dev/nbd0 ]
}

forced_detach_works_under_a_mounted_filesystem() {
  device=$(rok-blk attach vol1 --nbd)
  mount -t ext4 "$device" /mnt
  [ "$(rok-blk detach vol1 --force)" = "$device" ]
  refused dd if=/mnt/data of=/dev/null bs=1M iflag=direct
  umount /mnt
  [ -z "$(rok-blk devices -q)" ]
  rok-blk rm vol1
}

pool_is_whole() {
  [ -z "$(cat /sys/block/nbd*/pid 2>/dev/null)" ]
  rok-blk check --pool "$pool" --key-file "$key"
}

# restarted NAME: the daemon starts.
restarted() { if start_daemon; then pass "$1"; else fail "$1" "$(tail -5 /run/daemon.log)"; fi; }

under_load() {
  if killed_under_load; then pass killed; else fail killed "$(tail -5 /run/daemon.log)"; fi
  touch /run/end
  wait "$writer"
  writer_status=$?
  raw_status=0
  if [ -n "$raw" ]; then
    wait "$raw"
    raw_status=$?
  fi
  stage load load_went_on
}

foreign_disk() {
  stage nbd-client nbd_client_makes_a_disk
  stop_daemon
  sed -i 's/"0": {/"1": {/' "$pool/nbd-attachments.json"
  restarted start-taken
  stage taken disk_of_nbd_client_is_left_alone
  [ "$(rok-blk attach vol1 --nbd)" = /dev/nbd0 ] || fail attach-again
  stage disconnected disk_that_another_program_disconnects_is_told
}

stage pool make_pool
if start_daemon; then
  pass start
  stage volumes make_volumes
  stage attach attach_prints_the_path
  stage no-ublk missing_driver_is_named
  stage filesystem filesystem_is_made_and_written
  stage snapshot snapshot_attaches_beside_the_mounted_volume
  stage kept volume_that_is_attached_is_not_taken_away
  under_load
  stage grown disk_grows_while_it_is_mounted
  stage slow slow_request_is_answered_in_the_end
  if stop_daemon; then pass stop-mounted; else fail stop-mounted "$(tail -5 /run/daemon.log)"; fi
  restarted start-mounted
  stage mounted mounted_filesystem_is_there_after_a_planned_restart
  stage calm kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
  rok-blk attach vol4k --nbd --id 3 --once >/dev/null
  stop_daemon
  restarted start-unused
  stage unused unused_disk_is_made_anew
  if [ -x /usr/sbin/nbd-client ]; then
    foreign_disk
  else
    skip nbd-client 'nbd-client is not installed'
  fi
  stage forced forced_detach_works_under_a_mounted_filesystem
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  stage whole pool_is_whole
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more'
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
