# In the emulated machine: load whose disks are recorded, for power cuts that tests/power makes of the recording afterwards.
# The pool's data are on /dev/vda; /dev/vdb has a file system with the pool's directory, and so its meta/.
#
# What must be there after a cut is told by marks: a line that is written to /dev/vdc when it has become true. The recording
# has one order over the three disks, so whatever made a line true stands before it; and a line that takes something back
# is complete before that begins.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

pool=/disk/pool
key=/disk/pool.key
rounds=${ROK_POWER_ROUNDS:-30}
kills=${ROK_POWER_KILLS:-1}
# More than these files are not kept.
files_max=16
slots=32

# mark PLACE LINE: each place of the disk has one writer. The order of lines is that of the recording.
mark() {
  place=$1
  shift
  echo "$*" | dd of=/dev/vdc bs=4096 count=1 seek="$place" conv=sync,notrunc,fsync iflag=fullblock 2>/run/mark.log
}

disks_are_made() {
  /sbin/mke2fs -q -t ext4 -b 4096 /dev/vdb
  mkdir /disk
  mount -t ext4 /dev/vdb /disk
  make_pool
  sync
}

volume_is_mounted() {
  rok-blk create vol1 --size 128M
  device=$(rok-blk attach vol1)
  # A slot is one block of the file system and one of the volume: it is old or new, whatever happens.
  /sbin/mke2fs -q -t ext4 -b 4096 "$device"
  mount -t ext4 -o discard "$device" /mnt
  for slot in $(seq 0 $((slots - 1))); do slot_content "$slot" 0; done | dd of=/mnt/slots bs=4k conv=fsync
  sync
}

# slot_content SLOT VERSION: 4096 bytes that say what they are, all along.
slot_content() {
  line="slot $1 version $2"
  while [ "${#line}" -lt 31 ]; do line="$line."; done
  yes "$line" | head -c 4096
}

# One block of a file, in place.
write_slot() {
  slot_content "$1" "$2" >/run/slot
  dd if=/run/slot of=/mnt/slots bs=4k seek="$1" conv=notrunc,fsync || return 1
  mark 1 "slot $1 $2"
}

# write_file NUMBER: a new one, synced; and the oldest goes.
write_file() {
  dd if=/dev/urandom of=/run/block bs=4k count=$((1 + RANDOM % 48)) || return 1
  hash=$(sha256sum </run/block | cut -c1-64)
  dd if=/run/block of="/mnt/file-$1" bs=64k conv=fsync || return 1
  mark 0 "durable file-$1 $hash"
  oldest=$(($1 - files_max))
  if [ "$oldest" -ge 0 ]; then
    mark 0 "removing file-$oldest"
    rm "/mnt/file-$oldest" || return 1
  fi
}

# What nobody syncs, so that there is always something to lose.
make_noise() {
  while [ ! -e /run/end ]; do
    dd if=/dev/urandom of="/mnt/noise-$((RANDOM % 6))" bs=4k count=$((1 + RANDOM % 32)) seek=$((RANDOM % 96)) conv=notrunc || return 1
    [ $((RANDOM % 8)) != 0 ] || rm -f "/mnt/noise-$((RANDOM % 6))"
    sleep 0.1
  done
}

take_snapshot() {
  mark 0 "snapshot-begins"
  name=$(rok-blk snapshot vol1)
  mark 0 "snapshot $name"
}

# The daemon dies, and recovers under the disk that is in use. Its end can only be awaited by the shell that started it: not
# by a stage, which is one of its own. A daemon that starts while the other still dies is told that one serves already.
restart_daemon() {
  kill -KILL "$daemon"
  wait "$daemon"
  [ $? = 137 ] || return 1
  start_daemon || return 1
}

load() {
  make_noise >/run/noise.log 2>&1 &
  noise=$!
  for round in $(seq 0 $((rounds - 1))); do
    write_file "$round" || return 1
    write_slot $((RANDOM % slots)) $((round + 1)) || return 1
    [ $((round % 10)) != 4 ] || take_snapshot || return 1
    [ $((round % (rounds / (kills + 1) + 1))) != $((rounds / (kills + 1))) ] || restart_daemon || return 1
  done
  touch /run/end
  wait "$noise"
}

stage disks disks_are_made
if start_daemon; then
  stage volume volume_is_mounted
  mark 0 begin
  # In this shell, see restart_daemon.
  if load >/run/load.log 2>&1; then pass load; else quote </run/load.log; fail load "$(tail -n 1 /run/load.log)"; fi
  mark 0 end
  stage calm kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
# No end: the power is cut.
