# In the emulated machine: the example lane_device serves two devices and NBD with one lane over a pool on /dev/vda.

# start_server: starts it; its input is fd 9 (it stops when that closes), its output fd 8; sets $server, $disk, $null.
start_server() {
  mkfifo /run/stop /run/out
  lane_device /run/pool /dev/vda /run/nbd.sock 256 </run/stop >/run/out 2>&1 &
  server=$!
  exec 9>/run/stop 8</run/out
  await_line 8 'READY *' || return 1
  say "$line"
  disk=${line#READY }
  disk=${disk%% *}
  null=${line##* }
}

# One lane serves, and what it does goes through one ring. Behind it is the cleaner's lane with a ring of its own, which
# serves nobody; and a third ring is the control's, which does no I/O.
one_lane_has_the_ring() {
  [ "$(cat /proc/"$server"/task/*/comm | grep -c '^lane-')" = 2 ]
  rings=$(ls -l "/proc/$server/fd" | grep -c 'io_uring')
  echo "$rings rings"
  [ "$rings" -le 3 ]
}

attributes_are_as_asked() {
  queue=/sys/block/${disk##*/}/queue
  [ "$(cat "$queue/logical_block_size")" = 512 ]
  [ "$(cat "$queue/physical_block_size")" = 4096 ]
  [ "$(cat "$queue/write_cache")" = 'write back' ]
  [ "$(cat "$queue/fua")" = 1 ]
}

null_device_gives_zeros() {
  dd if=/dev/urandom of="$null" bs=1M count=8 oflag=direct
  dd if="$null" bs=1M count=8 iflag=direct 2>/dev/null | cmp -n $((8 << 20)) - /dev/zero
}

new_volume_reads_zeros() { dd if="$disk" bs=1M count=8 iflag=direct 2>/dev/null | cmp -n $((8 << 20)) - /dev/zero; }

data_comes_back() {
  dd if=/dev/urandom of=/run/data bs=1M count=16 2>/dev/null
  dd if=/run/data of="$disk" bs=1M oflag=direct conv=fsync
  same_bytes /run/data "$disk"
  # Sectors at the edges of blocks: merged under the block's lock.
  dd if=/dev/urandom of=/run/sectors bs=512 count=5 2>/dev/null
  dd if=/run/sectors of="$disk" bs=512 seek=7 count=5 oflag=direct
  dd if=/run/sectors of=/run/data bs=512 seek=7 count=5 conv=notrunc
  same_bytes /run/data "$disk"
}

discarded_range_reads_zeros() {
  blkdiscard -o 0 -l $((4 << 20)) "$disk"
  dd if="$disk" bs=1M count=4 iflag=direct 2>/dev/null | cmp -n $((4 << 20)) - /dev/zero
  dd if="$disk" bs=1M skip=4 count=12 iflag=direct 2>/dev/null >/run/rest
  dd if=/run/data bs=1M skip=4 count=12 2>/dev/null | cmp - /run/rest
}

# All at once on the one ring: both queues of the device, the null device, an NBD connection, and the pool's own I/O.
verified_loads_run_side_by_side() {
  verified="--size=10M --iodepth=16 --direct=1 --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1"
  verified="$verified --verify_state_save=0 --minimal --output=/dev/null"
  # shellcheck disable=SC2086
  /usr/bin/fio --name=disk $verified --filename="$disk" --rw=randwrite --bsrange=512-64k --ioengine=io_uring \
    --numjobs=2 --offset_increment=64M --cpus_allowed=0,1 --cpus_allowed_policy=split &
  one=$!
  # shellcheck disable=SC2086
  /usr/bin/fio --name=export $verified --rw=randwrite --bs=4k --ioengine=nbd \
    --uri='nbd+unix:///export?socket=/run/nbd.sock' &
  two=$!
  /usr/bin/fio --name=null --filename="$null" --rw=randrw --bs=4k --size=256M --io_size=10M --ioengine=io_uring \
    --iodepth=16 --direct=1 --minimal --output=/dev/null &
  three=$!
  wait "$one"
  wait "$two"
  wait "$three"
}

filesystem_is_clean() {
  /sbin/mke2fs -q -t ext4 "$disk"
  mount -t ext4 "$disk" /mnt
  cp /run/data /mnt/data
  mkdir /mnt/small
  for number in $(seq 100); do echo "$number" >"/mnt/small/$number"; done
  sync
  rm /mnt/small/1*
  umount /mnt
  /sbin/e2fsck -f -n "$disk"
  echo 3 >/proc/sys/vm/drop_caches
  mount -t ext4 -o ro "$disk" /mnt
  cmp /run/data /mnt/data
  umount /mnt
}

# requests DEVICE HOW MIB: each 4 KiB at the beginning of a device once, by no order.
requests() {
  /usr/bin/fio --name=requests --filename="$1" --rw="$2" --bs=4k --size="$3M" --io_size="$3M" --iodepth=16 --direct=1 \
    --ioengine=io_uring --minimal --output=/dev/null
}

# allocations DEVICE HOW MIB: of the process, while it serves these requests.
allocations() {
  echo >&9
  await_line 8 'ALLOCATIONS *'
  before=${line#ALLOCATIONS }
  requests "$1" "$2" "$3"
  echo >&9
  await_line 8 'ALLOCATIONS *'
  echo $((${line#ALLOCATIONS } - before))
}

# no_allocations_once_warm DEVICE HOW MIB SHARE: one allocation for SHARE requests is what a timer of the daemon may have asked for
# meanwhile. A checkpoint allocates, and one comes every few seconds while there are writes: a measurement that it came into
# is made again, and on a slow machine part of one comes into each.
no_allocations_once_warm() {
  for _ in $(seq 24); do
    # What is new in the map since the last checkpoint takes memory; a block that is written again does not.
    requests "$@"
    count=$(allocations "$@")
    echo "$1 $2: $count allocations for $(($3 * 256)) requests" >>/run/counts
    [ "$count" -gt $(($3 * 256 / $4)) ] || return 0
  done
  cat /run/counts
  return 1
}

devices_are_gone() { [ ! -e "$disk" ] && [ ! -e "$null" ]; }

if start_server; then
  pass start
  stage one-ring one_lane_has_the_ring
  stage attributes attributes_are_as_asked
  stage null null_device_gives_zeros
  stage empty new_volume_reads_zeros
  stage data data_comes_back
  stage discard discarded_range_reads_zeros
  if [ -x /usr/bin/fio ]; then
    stage null-reads-allocate-nothing no_allocations_once_warm "$null" randread 4 100
    stage null-writes-allocate-nothing no_allocations_once_warm "$null" randwrite 4 100
    stage reads-allocate-nothing no_allocations_once_warm "$disk" randread 4 100
    stage writes-allocate-nothing no_allocations_once_warm "$disk" randwrite 2 10
    while read -r line; do say "$line"; done </run/counts
    stage side-by-side verified_loads_run_side_by_side
  else
    skip side-by-side 'fio is not installed'
  fi
  stage filesystem filesystem_is_clean
  exec 9>&-
  while read -r -t 60 line <&8; do say "$line"; verdict=$line; done
  wait "$server"
  status=$?
  if [ "$status" = 0 ] && [ "$verdict" = PASS ]; then pass end; else fail end "status $status"; fi
  stage deleted devices_are_gone
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error'
else
  fail start "$(cat <&8)"
fi
