# In the emulated machine: how fast ublk is served here, as ratios, each of two that take turns. A lane against the null device of
# libublk's own example: in the same mode, where that device leaves the data out (reads give what was in memory), with a device of ours
# that does so too (null) and with one that copies what is read (null-filled); with buffers that the driver fills; and, with a driver of
# 6.16 or newer, without any copy (UBLK_F_AUTO_BUF_REG), which is what a server gains at most that never looks at the data. And a
# volume against a loop device on the same disk. An emulated machine says nothing of times, and scatters; a failure is only what did
# not run.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

rounds=${ROK_FIGURE_ROUNDS:-5}
seconds=${ROK_FIGURE_SECONDS:-2}

# The disk's first half is the pool's, the other the loop device's.
disk_is_divided() {
  half=$(($(cat /sys/block/vda/size) / 2))
  printf 'o\nn\np\n1\n\n%s\nn\np\n2\n\n\nw\n' "$half" | fdisk -u /dev/vda
  [ -b /dev/vda1 ]
  /sbin/losetup --direct-io=on /dev/loop0 /dev/vda2
}

# lane_device serves a volume, a null device that copies nothing and one that fills what is read, with one lane.
start_ours() {
  mkfifo /run/stop /run/out
  lane_device "$pool" /dev/vda1 /run/nbd.sock 256 </run/stop >/run/out 2>&1 &
  server=$!
  exec 9>/run/stop 8</run/out
  await_line 8 'READY *' || return 1
  volume=${line#READY }
  volume=${volume%% *}
  null=${line##* }
  bare=${line% *}
  bare=${bare##* }
}

# start_library NUMBER [ARGUMENT]: the library's example serves until it is killed. It says nothing when it is ready, but the disk is
# there. Adds its process to $libraries.
libraries=''
start_library() {
  number=$1
  shift
  null add --foreground -n "$number" -q 2 -d 128 "$@" >"/run/library-$number" 2>&1 &
  libraries="$libraries $!"
  looks=0
  until [ -b "/dev/ublkb$number" ]; do
    looks=$((looks + 1))
    if [ "$looks" -gt 300 ] || ! kill -0 $!; then return 1; fi
    sleep 0.1
  done
}

# What is measured: its name, the two devices, and what fio does. ROK_FIGURE_CASES says which, as words of their names.
cases() { all_cases | grep -E "^[^ ]*(${ROK_FIGURE_CASES:-.*})"; }

all_cases() {
  for how in randread randwrite; do
    for depth in 1 64; do
      echo "null-$how-4k-qd$depth /dev/ublkb40 $bare $how 4k $depth"
      [ "$how" != randread ] || echo "null-filled-$how-4k-qd$depth /dev/ublkb40 $null $how 4k $depth"
      echo "null-with-buffers-$how-4k-qd$depth /dev/ublkb41 $null $how 4k $depth"
      [ -z "$uncopied" ] || echo "null-uncopied-$how-4k-qd$depth $uncopied $null $how 4k $depth"
    done
    [ -z "$uncopied" ] || echo "null-uncopied-$how-256k-qd8 $uncopied $null $how 256k 8"
    for depth in 1 32; do echo "volume-$how-4k-qd$depth /dev/loop0 $volume $how 4k $depth"; done
  done
}

# requests DEVICE HOW SIZE DEPTH: a second.
requests() {
  # Of what is written to both before: 128 MiB.
  /usr/bin/fio --name=figure --filename="$1" --rw="$2" --bs="$3" --size=128M --iodepth="$4" --direct=1 --ioengine=io_uring \
    --time_based --runtime="$seconds" --minimal >/run/fio || { cat /run/fio >&2; return 1; }
  # Reads and writes, of which there are none of one kind.
  awk -F ';' '{ print int($8 + $49) }' /run/fio
}

devices_are_filled() {
  for device in /dev/loop0 "$volume"; do dd if=/dev/zero of="$device" bs=1M count=128 oflag=direct; done
}

take_turns() {
  for _ in $(seq "$rounds"); do
    cases | while read -r name theirs ours how size depth; do
      other=$(requests "$theirs" "$how" "$size" "$depth") || return 1
      own=$(requests "$ours" "$how" "$size" "$depth") || return 1
      echo "$name $other $own" >>/run/figures
    done || return 1
  done
}

# The middle of what comes in, one number a line, and its ends.
median() { sort -n | awk '{ all[NR] = $1 } END { printf "%s (%s to %s)", all[int((NR + 1) / 2)], all[1], all[NR] }'; }

tell() {
  cases | while read -r name _; do
    grep "^$name " /run/figures >/run/case
    say "$name: $(awk '{ printf "%.3f\n", $3 / $2 }' /run/case | median); ours $(awk '{ print $3 }' /run/case | median), other $(
      awk '{ print $2 }' /run/case | median) a second"
  done
}

stage divided disk_is_divided
if start_ours && start_library 40 --user_copy && start_library 41; then
  pass start
  uncopied=''
  if start_library 42 --zero-copy; then uncopied=/dev/ublkb42; else say "no device without copies: $(tail -n 1 /run/library-42)"; fi
  stage filled devices_are_filled
  stage measured take_turns
  tell
  # shellcheck disable=SC2086 # words
  kill $libraries
  exec 9>&-
  while read -r -t 60 line <&8; do verdict=$line; done
  wait "$server"
  if [ "$verdict" = PASS ]; then pass end; else fail end "$verdict"; fi
else
  fail start "$(cat /run/library-*)"
fi
