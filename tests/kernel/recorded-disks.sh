#!/bin/bash
# Disks of the emulated machine that record everything which is done to them, in one order over all disks, with QEMU's block
# driver blklogwrites. Sourced by vm.sh; tests/power reads the recording.
#
# Each disk has a blklogwrites of its own, so that a flush is that disk's alone. A log by itself does not tell what happened
# on the other disk at the time, so the logs are appended to one more disk, each in its own part, and around that one there is
# blklogwrites too: its log has each disk's entries, one write each, in one order.
#
# Why that order may be relied on: the driver appends an entry when it has done the request, and completes the request when
# the entry is appended. So the place of a request lies between its submission and its completion as the machine saw them:
# what was complete before something else was submitted comes first, on whichever disks. A flush stands behind all writes
# that were complete when it was submitted. QEMU leaves out a flush only if nothing was written since the one before began.
# Writes that were under way during a flush may stand before it and count as flushed: a power cut could have spared them.
#
# A flush does nothing on the host, hence takes no time in which writes could slip before it. Writes of zeros, whose entries
# are appended in two pieces, are switched off; the kernel writes zeros itself then. Requests are not merged.

# Where each disk's log begins on the disk of logs, as tests/power/log.rs knows it.
readonly log_part_bytes=$((1 << 40))

# record_disks DIRECTORY DATA_MIB META_MIB: sets the array `disk`, and `recorder`, the process that writes
# DIRECTORY/common.log. /dev/vda and /dev/vdb are DIRECTORY/vda and DIRECTORY/vdb; what is written to /dev/vdc, 1 MiB, is in
# the log only.
record_disks() {
  local directory=$1 part=0 name
  # What an earlier boot left.
  rm -f "$directory"/vd? "$directory/common.log"
  truncate -s "${2}M" "$directory/vda"
  truncate -s "${3}M" "$directory/vdb"
  : >"$directory/common.log"
  qemu-nbd --image-opts --socket "$directory/logs.sock" --shared=3 --persistent --cache=unsafe --fork \
    --pid-file "$directory/recorder.pid" \
    "driver=blklogwrites,log-sector-size=512,file.driver=null-co,file.size=$((3 * log_part_bytes)),file.read-zeroes=on,\
log.driver=file,log.filename=$directory/common.log,log.cache.no-flush=on"
  recorder=$(<"$directory/recorder.pid")
  disk=()
  for name in vda vdb vdc; do
    local content="\"driver\":\"file\",\"filename\":\"$directory/$name\",\"discard\":\"unmap\",\"cache\":{\"no-flush\":true}"
    [ "$name" != vdc ] || content='"driver":"null-co","size":1048576,"read-zeroes":true'
    disk+=(
      -blockdev "{\"driver\":\"raw\",\"node-name\":\"$name-log\",\"offset\":$((part * log_part_bytes)),\"size\":$log_part_bytes,
\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"$directory/logs.sock\"}}}"
      -blockdev "{\"driver\":\"blklogwrites\",\"node-name\":\"$name\",\"log\":\"$name-log\",\"log-sector-size\":512,
\"file\":{$content}}"
      -device "virtio-blk-pci,drive=$name,write-zeroes=off,request-merging=off,write-cache=on"
    )
    part=$((part + 1))
  done
}

# end_recording: until the recorder has written its log.
end_recording() {
  kill "$recorder"
  # It is no child of this shell.
  tail --pid="$recorder" -f /dev/null
  recorder=''
}
