# In the emulated machine: the example null_shared_ring serves a device, a file and a socket through one ring.

# start_server: starts it; its input is fd 9 (it stops when that closes), its output fd 8; sets $server and $device.
start_server() {
  rm -f /run/stop /run/out /run/echo.sock
  mkfifo /run/stop /run/out
  null_shared_ring /dev/vda /run/echo.sock 256 </run/stop >/run/out 2>&1 &
  server=$!
  exec 9>/run/stop 8</run/out
  await_line 8 'READY *' || return 1
  device=${line#READY }
  device=${device%% *}
  queue=/sys/block/${device##*/}/queue
  say "$line"
}

driver_is_there() { [ -c /dev/ublk-control ]; }

control_cases_pass() { control_cases >/run/control 2>&1 || { cat /run/control; return 1; } }

attributes_are_as_asked() {
  [ "$(cat "$queue/../size")" = $((256 * 2048)) ]
  [ "$(cat "$queue/logical_block_size")" = 4096 ]
  [ "$(cat "$queue/max_hw_sectors_kb")" = 512 ]
  [ "$(cat "$queue/write_cache")" = 'write back' ]
  [ "$(cat "$queue/fua")" = 1 ]
  [ "$(cat "$queue/discard_max_bytes")" = $((1 << 30)) ]
  [ "$(cat "$queue/write_zeroes_max_bytes")" = $((1 << 30)) ]
  [ "$(ls "$queue/../mq" | wc -l)" = 2 ]
}

# One writer on each processor, so that both queues of the ring are used.
data_comes_back() {
  dd if=/dev/urandom of=/run/data bs=1M count=16 2>/dev/null
  taskset 1 dd if=/run/data of="$device" bs=1M oflag=direct conv=fsync
  taskset 2 dd if=/run/data of="$device" bs=128k seek=512 oflag=direct conv=fsync
  same_bytes /run/data "$device"
  dd if="$device" bs=1M skip=64 count=16 iflag=direct 2>/dev/null | cmp /run/data -
}

discarded_range_reads_zeros() {
  blkdiscard -o 0 -l $((8 << 20)) "$device"
  dd if="$device" bs=1M count=8 iflag=direct 2>/dev/null | cmp -n $((8 << 20)) - /dev/zero
  dd if="$device" bs=1M skip=8 count=8 iflag=direct 2>/dev/null >/run/rest
  dd if=/run/data bs=1M skip=8 count=8 2>/dev/null | cmp - /run/rest
}

fio_verifies() {
  /usr/bin/fio --name=verify --filename="$device" --rw=randwrite --bsrange=4k-64k --size=24M --ioengine=io_uring \
    --iodepth=32 --direct=1 --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 \
    --numjobs=2 --offset_increment=64M --cpus_allowed=0,1 --cpus_allowed_policy=split
}

filesystem_is_clean() {
  /sbin/mke2fs -q -t ext4 "$device"
  mount -t ext4 "$device" /mnt
  cp /run/data /mnt/data
  mkdir /mnt/small
  for number in $(seq 200); do echo "$number" >"/mnt/small/$number"; done
  sync
  rm /mnt/small/1*
  umount /mnt
  /sbin/e2fsck -f -n "$device"
  echo 3 >/proc/sys/vm/drop_caches
  mount -t ext4 -o ro "$device" /mnt
  cmp /run/data /mnt/data
  [ "$(cat /mnt/small/27)" = 27 ]
  umount /mnt
}

device_is_gone() { [ ! -e "$device" ] && [ ! -e "/dev/ublkc${device##*ublkb}" ]; }

writes_done() { awk '{ print $5 }' "/sys/block/${device##*/}/stat"; }

# What is in flight when its server dies fails; it does not hang, and the driver lets the device go.
killed_server_leaves_no_hang() {
  before=$(writes_done)
  dd if=/dev/zero of="$device" bs=4k oflag=direct 2>/run/dd.log &
  writer=$!
  while [ "$(writes_done)" -lt $((before + 20)) ]; do kill -0 "$writer"; done
  kill -9 "$server"
  if wait "$writer"; then echo 'the writer saw no error'; exit 1; fi
  cat /run/dd.log
  grep -qE 'Input/output error|No such device' /run/dd.log
}

stage driver driver_is_there
stage control control_cases_pass
say "the driver has $(head -n 1 /run/control)"
if start_server; then
  pass start
  stage attributes attributes_are_as_asked
  stage data data_comes_back
  stage discard discarded_range_reads_zeros
  if [ -x /usr/bin/fio ]; then stage fio fio_verifies; else skip fio 'fio is not installed'; fi
  stage filesystem filesystem_is_clean
  exec 9>&-
  while read -r -t 60 line <&8; do say "$line"; verdict=$line; done
  wait "$server"
  status=$?
  if [ "$status" = 0 ] && [ "$verdict" = PASS ]; then pass shared-ring; else fail shared-ring "status $status"; fi
  stage deleted device_is_gone
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error'
else
  fail start "$(cat <&8)"
fi

if start_server; then
  stage killed-server killed_server_leaves_no_hang
  exec 9>&- 8<&-
  wait "$server"
  null_shared_ring --delete "${device##*ublkb}" || fail deleted-after-kill 'the driver kept the device'
  stage deleted-after-kill device_is_gone
  stage kernel-log-after-kill kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more'
else
  fail start-again "$(cat <&8)"
fi
