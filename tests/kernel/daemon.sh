# Vocabulary of the scripts that run the program itself in the emulated machine: its daemon serves a pool on /dev/vda. A
# busybox shell sources it, after guest.sh.

pool=/run/pool
key=/run/pool.key
# Words in front of the daemon's command, which become it (exec).
as=''

# start_daemon: in the background; its messages are in /run/daemon.log. Sets $daemon.
start_daemon() {
  mkfifo /run/messages
  # shellcheck disable=SC2086 # words
  $as rok-blk -v serve --pool "$pool" --key-file "$key" --lanes 2 </dev/null >/run/uris 2>/run/messages &
  daemon=$!
  exec 8</run/messages
  rm /run/messages
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
