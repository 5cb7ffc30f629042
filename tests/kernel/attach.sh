# In the emulated machine: the program itself. Its daemon serves a pool on /dev/vda; a user attaches volumes and snapshots,
# uses them as disks, and takes them away.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

# Of the first 40 MiB, where the file system has put all there is.
hash_of() { dd if="$1" bs=1M count=40 iflag=direct 2>/dev/null | md5sum; }

# connections_are N: waits until N have vol1 open, at most 60 looks.
connections_are() {
  looks=0
  until [ "$(rok-blk ls -o plain | sed -n 's/^vol1\t//p' | cut -f4)" = "$1" ]; do
    looks=$((looks + 1))
    [ "$looks" -lt 60 ]
  done
}

make_volumes() {
  [ "$(rok-blk create vol1 --size 128M)" = vol1 ]
  rok-blk create vol4k --size 64M --sector-size 4096
}

attach_prints_the_path() {
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  [ -b /dev/ublkb0 ]
  [ "$(blockdev --getsize64 /dev/ublkb0)" = $((128 << 20)) ]
  queue=/sys/block/ublkb0/queue
  [ "$(cat "$queue/logical_block_size")" = 512 ]
  [ "$(cat "$queue/physical_block_size")" = 4096 ]
  [ "$(cat "$queue/write_cache")" = 'write back' ]
  [ "$(cat "$queue/fua")" = 1 ]
  queues_are_served ublkb0
}

# queues_are_served DISK: one for each processor, but one only where the driver would lose a disk with several.
queues_are_served() {
  wanted=2
  case $(uname -r) in 6.1[6-9].*) wanted=1 ;; esac
  [ "$(ls -d "/sys/block/$1/mq/"* | wc -l)" = "$wanted" ]
}

several_are_attached_and_told() {
  rok-blk attach vol4k --id 7 --queues 1 --depth 16 | grep -x /dev/ublkb7
  [ "$(cat /sys/block/ublkb7/queue/logical_block_size)" = 4096 ]
  rok-blk devices
  [ "$(rok-blk devices -q)" = "/dev/ublkb0
/dev/ublkb7" ]
  rok-blk devices -o jsonl | grep '"device":"/dev/ublkb7"' | grep '"depth":16' | grep '"state":"live"'
  [ "$(rok-blk attach vol1 vol4k)" = "/dev/ublkb0
/dev/ublkb7" ]
  fails 7 'is attached already' rok-blk attach vol1 --id 5
  fails 7 'is attached already' rok-blk attach vol1 --read-only
  [ "$(rok-blk detach /dev/ublkb7)" = /dev/ublkb7 ]
  [ ! -e /dev/ublkb7 ]
  [ ! -e /dev/ublkc7 ]
  fails 4 'is not attached' rok-blk detach vol4k
}

filesystem_is_made_and_written() {
  /sbin/mke2fs -q -t ext4 /dev/ublkb0
  mount -t ext4 /dev/ublkb0 /mnt
  dd if=/dev/urandom of=/mnt/data bs=1M count=12 2>/dev/null
  mkdir /mnt/small
  for number in $(seq 200); do echo "$number" >"/mnt/small/$number"; done
  rm /mnt/small/1*
  sync
  (cd /mnt && find . -type f -exec sha256sum {} +) | sort >/run/hashes
  [ "$(wc -l </run/hashes)" -ge 80 ]
}

snapshot_attaches_beside_the_mounted_volume() {
  # Nothing is written between the two, so the disk's bytes are the snapshot's.
  fsfreeze --freeze /mnt
  hash_of /dev/ublkb0 >/run/disk
  rok-blk snapshot vol1 | grep -x vol1@1
  fsfreeze --unfreeze /mnt
  dd if=/dev/urandom of=/mnt/later bs=1M count=8 conv=fsync 2>/dev/null
  snapshot=$(rok-blk attach vol1@1)
  [ "$(rok-blk attach vol1@latest)" = "$snapshot" ]
  [ "$(cat "/sys/block/${snapshot##*/}/ro")" = 1 ]
  hash_of "$snapshot" | cmp - /run/disk
  refused dd if=/dev/zero of="$snapshot" bs=4096 count=1 oflag=direct
  mkdir -p /run/old
  mount -t ext4 -o ro,noload "$snapshot" /run/old
  (cd /run/old && find . -type f -exec sha256sum {} +) | sort | cmp - /run/hashes
  fails 7 "$snapshot" rok-blk rm vol1@1
  fails 7 'in use' rok-blk detach vol1@1
  umount /run/old
  rok-blk detach vol1@1 | grep -x "$snapshot"
  rm /mnt/later
  sync
}

volume_that_is_attached_is_not_taken_away() {
  fails 7 'attached as /dev/ublkb0' rok-blk rm vol1
  fails 7 'attached as /dev/ublkb0' rok-blk rm vol1 --now
  fails 7 'attached as /dev/ublkb0' rok-blk rollback vol1 --to 1
  fails 7 '/dev/ublkb0' rok-blk key lock
  fails 7 'in use' rok-blk detach vol1
  fails 7 'in use' rok-blk detach /dev/ublkb0
  [ -b /dev/ublkb0 ]
  # A new name is no trouble.
  rok-blk rename vol1 other
  rok-blk devices | grep other
  [ "$(rok-blk attach other)" = /dev/ublkb0 ]
  rok-blk rename other vol1
}

# Where the driver cannot do that (before Linux 6.16), it is refused with the way out, and nothing has changed.
disk_grows_with_its_volume() {
  fails 7 'smaller under its users' rok-blk resize vol1 64M --shrink --yes
  size=$((128 << 20))
  if rok-blk resize vol1 192M >/run/resized 2>/run/refusal; then
    size=$((192 << 20))
    say 'the disk grew under its file system'
    /sbin/resize2fs /dev/ublkb0
    [ "$(df -k /mnt | awk '/ublkb0/ { print $2 }')" -gt $((165 << 10)) ]
    dd if=/dev/zero of=/mnt/grown bs=1M count=100 conv=fsync
    rm /mnt/grown
  else
    cat /run/refusal
    grep 'leaves a disk its size' /run/refusal | grep 'rok-blk detach vol1'
  fi
  [ "$(blockdev --getsize64 /dev/ublkb0)" = "$size" ]
  [ "$(rok-blk ls -o jsonl | sed -n 's/.*"name":"vol1",.*"size":\([0-9]*\),.*/\1/p')" = "$size" ]
}

device_that_is_open_is_not_taken_away() {
  umount /mnt
  exec 7</dev/ublkb0
  fails 7 'have it open' rok-blk detach vol1
  exec 7<&-
  [ "$(rok-blk detach vol1)" = /dev/ublkb0 ]
  [ ! -e /dev/ublkb0 ]
  [ -z "$(rok-blk devices -q)" ]
}

forced_detach_works_under_a_mounted_filesystem() {
  device=$(rok-blk attach vol1)
  mount -t ext4 "$device" /mnt
  [ "$(rok-blk detach vol1 --force)" = "$device" ]
  [ ! -e "$device" ]
  umount /mnt
  rok-blk attach vol1
}

# One load on each processor, so that both queues are full.
load_is_verified() {
  queues_are_served "$(rok-blk devices -q | cut -d/ -f3)"
  # shellcheck disable=SC2086
  /usr/bin/fio --name=disk --filename="$(rok-blk devices -q)" --rw=randwrite --bsrange=512-128k --size=24M --iodepth=64 --direct=1 \
    --ioengine=io_uring --numjobs=2 --offset_increment=64M --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 \
    --verify_state_save=0 --cpus_allowed=0,1 --cpus_allowed_policy=split --minimal --output=/dev/null
}

# In place of the shell that runs it: in the background $! names fio itself.
become_nbd_client() {
  exec /usr/bin/fio --thread --name=nbd --ioengine=nbd --uri='nbd+unix:///vol1?socket=/run/rok-blk/nbd.sock' --size=1M "$@"
}

nbd() { (become_nbd_client "$@"); }

nbd_client_does_not_write_an_attached_volume() {
  refused nbd --rw=write --bs=4k
  rok-blk export vol1 --read-only
  nbd --rw=read --bs=4k
  rok-blk export vol1 --read-write
  # The device is one of them.
  connections_are 1
  rok-blk unexport vol1
  rok-blk export vol1
  rok-blk detach vol1
  rok-blk attach vol1 --shared
  nbd --rw=write --bs=4k
  rok-blk detach vol1
  connections_are 0
}

volume_that_an_nbd_client_writes_is_not_attached() {
  become_nbd_client --rw=write --bs=4k --time_based --runtime=300 --rate_iops=50 >/run/nbd.log 2>&1 &
  client=$!
  connections_are 1
  fails 7 'has a writer' rok-blk attach vol1
  device=$(rok-blk attach vol1 --read-only)
  dd if="$device" of=/dev/null bs=1M count=1 iflag=direct
  rok-blk detach vol1
  device=$(rok-blk attach vol1 --shared)
  rok-blk detach "$device"
  # A shell without job control has what it starts in the background ignore SIGINT.
  kill -TERM "$client"
  wait "$client" || true
  connections_are 0
  rok-blk attach vol1
}

limit_of_the_driver_is_named() {
  device=$(rok-blk devices -q)
  echo 1 >/sys/module/ublk_drv/parameters/ublks_max
  # Since Linux 6.15, and in kernels that took that over, the limit is for devices of users without privileges only.
  if rok-blk attach vol4k >/run/second; then
    cat /run/second
    rok-blk detach vol4k
  else
    fails 8 'ublks_max = 1' rok-blk attach vol4k
  fi
  echo 64 >/sys/module/ublk_drv/parameters/ublks_max
  fails 5 'already' rok-blk attach vol4k --id "${device#/dev/ublkb}"
  device=$(rok-blk attach vol4k)
  rok-blk detach "$device"
}

lock_takes_devices_away() {
  device=$(rok-blk devices -q)
  [ -b "$device" ]
  rok-blk key lock --force
  [ ! -e "$device" ]
  fails 10 'locked' rok-blk attach vol1
  rok-blk key unlock --key-file "$key"
  rok-blk attach vol1
}

# No permission and no driver: what users of another machine see.
missing_driver_is_named() {
  mv /dev/ublk-control /dev/hidden
  bad=0
  fails 13 'modprobe ublk_drv' rok-blk attach vol4k || bad=1
  # What is attached can be taken away all the same.
  rok-blk detach vol1 || bad=1
  mv /dev/hidden /dev/ublk-control
  [ "$bad" = 0 ]
  [ -z "$(rok-blk devices -q)" ]
  rok-blk attach vol1
}

# Each is several commands to the driver, none of which may be left lying (Linux 6.18 did that to one in some twenty rounds).
attached_again_and_again() {
  rok-blk detach vol1
  for round in $(seq "${ROK_ATTACH_ROUNDS:-3}"); do
    echo "round $round"
    rok-blk attach vol1
    rok-blk detach vol1
  done
  rok-blk attach vol1
}

# Ten years forward and twenty back, where it stays: what orders things counts.
clock_is_set() {
  device=$(rok-blk devices -q)
  before=$(rok-blk snapshot vol1)
  dd if=/dev/urandom of=/run/clock bs=1M count=4
  for years in 10 -20; do
    date -s "@$(($(date +%s) + years * 31557600))"
    dd if=/run/clock of="$device" bs=1M oflag=direct conv=fsync
    same_bytes /run/clock "$device"
    after=$(rok-blk snapshot vol1)
    [ "${after#vol1@}" = $((${before#vol1@} + 1)) ]
    before=$after
  done
  snapshot=$(rok-blk attach vol1@latest)
  same_bytes /run/clock "$snapshot"
  rok-blk detach "$snapshot"
  rok-blk rm "$before" --now
  [ "$(rok-blk ls -q | grep -c '^vol1$')" = 1 ]
}

pool_is_whole() {
  [ "$(find /dev -name 'ublk[bc]*')" = '' ]
  rok-blk check --pool "$pool" --key-file "$key"
}

stage pool make_pool
if start_daemon; then
  pass start
  stage volumes make_volumes
  stage attach attach_prints_the_path
  stage several several_are_attached_and_told
  stage filesystem filesystem_is_made_and_written
  stage snapshot snapshot_attaches_beside_the_mounted_volume
  stage kept volume_that_is_attached_is_not_taken_away
  stage grown disk_grows_with_its_volume
  stage open device_that_is_open_is_not_taken_away
  stage forced forced_detach_works_under_a_mounted_filesystem
  stage limit limit_of_the_driver_is_named
  stage no-driver missing_driver_is_named
  if [ -x /usr/bin/fio ]; then
    stage verified load_is_verified
    stage nbd-refused nbd_client_does_not_write_an_attached_volume
    stage attach-refused volume_that_an_nbd_client_writes_is_not_attached
  else
    skip verified 'fio is not installed'
  fi
  stage lock lock_takes_devices_away
  stage again attached_again_and_again
  stage clock clock_is_set
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  stage whole pool_is_whole
  # ext4 tells of the device that was taken away under it.
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more'
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
