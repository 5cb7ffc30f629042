# Vocabulary of the scripts that run the program itself in the emulated machine: its daemon serves a pool on /dev/vda. A
# busybox shell sources it, after guest.sh.

pool=/run/pool
key=/run/pool.key
# Words in front of the daemon's command, which become it (exec).
as=''

# start_daemon: in the background, by the command $as if it is set; its messages are in /run/daemon.log. Sets $daemon.
start_daemon() {
  mkfifo /run/messages
  # Neither waits for the other end: a child that ends meanwhile would interrupt that, which the shell does not survive.
  exec 9<>/run/messages 8</run/messages
  rm /run/messages
  # shellcheck disable=SC2086 # words
  $as rok-blk -v serve --pool "$pool" --key-file "$key" --lanes 2 </dev/null >/run/uris 2>&9 8<&- 9>&- &
  daemon=$!
  exec 9>&-
  line=''
  until [ "$line" = Ready. ]; do
    read -r -t 60 line <&8 || return 1
    echo "$line" >>/run/daemon.log
  done
  # Nobody else reads it: a pipe that is full would stop the daemon.
  cat <&8 >>/run/daemon.log &
  exec 8<&-
}

# stop_daemon: as systemd does; it must end well.
stop_daemon() {
  kill -TERM "$daemon"
  wait "$daemon"
}

# fails CODE WORD COMMAND...: the command's exit code is CODE, and what it says has WORD in it.
fails() {
  code=$1 word=$2
  shift 2
  status=0
  "$@" >/run/out 2>/run/said || status=$?
  cat /run/said
  [ "$status" = "$code" ] || { echo "exit code $status, not $code: $*"; return 1; }
  grep -q -- "$word" /run/said || { echo "does not say $word: $*"; return 1; }
  [ ! -s /run/out ] || { echo "prints something: $*"; return 1; }
}

# refused COMMAND...: it fails, in whatever way.
refused() {
  if "$@"; then echo "worked: $*"; return 1; fi
}

make_pool() {
  rok-blk pool create "$pool" --device /dev/vda --key-file "$key" --generate-key
}

# The load of scripts that end the daemon under it. Who writes files appends a line to /run/beats for each, and is $writer.

# verify_raw DEVICE SIZE DISTANCE: two jobs write and verify so much of a disk each, so far from each other, until
# /run/end is there.
verify_raw() {
  # In use all the time, also between two rounds.
  exec 6<"$1"
  while [ ! -e /run/end ]; do
    /usr/bin/fio --name=raw --filename="$1" --rw=randwrite --bsrange=512-64k --size="$2" --iodepth=32 --direct=1 \
      --ioengine=io_uring --numjobs=2 --offset_increment="$3" --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 \
      --verify_state_save=0 --minimal --output=/dev/null || return 1
    echo >>/run/raw-rounds
  done
}

# await_lines FILE COUNT PROCESS [SECONDS_MAX]: until a process has written so many more lines, by default for at most 60 s.
await_lines() {
  wanted=$(($(wc -l <"$1") + $2))
  looks=0
  until [ "$(wc -l <"$1")" -ge "$wanted" ]; do
    looks=$((looks + 1))
    if [ "$looks" -gt $((${4:-60} * 10)) ] || ! kill -0 "$3" 2>/dev/null; then return 1; fi
    sleep 0.1
  done
}

# await_files COUNT: until the writer has written so many more.
await_files() { await_lines /run/beats "$1" "$writer"; }
