# In the emulated machine: ext4 and xfs, mounted side by side on volumes. What is copied there is there again, their own
# programs find nothing wrong, what is trimmed comes back to the pool, snapshots and clones mount beside what they are of.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

kinds='ext4 xfs'
# Of a file that is written, removed and trimmed in each.
large_mib=16

# disk_of KIND: both volumes have the name of their file system.
disk_of() { case $1 in ext4) echo /dev/ublkb0 ;; xfs) echo /dev/ublkb1 ;; esac; }

# check KIND DEVICE: it finds nothing wrong; changes nothing.
check() { case $1 in ext4) /sbin/e2fsck -f -n "$2" ;; xfs) /sbin/xfs_repair -n "$2" ;; esac; }

# tree_hashes DIRECTORY: what is in its files, whose they are, and where its links lead.
tree_hashes() {
  (
    cd "$1" || exit
    find . -type f -exec sha256sum {} + | sort
    find . -type f -exec stat -c '%n %f %h %s %Y' {} + | sort
    find . -type l | sort | while read -r link; do echo "$link $(readlink "$link")"; done
  )
}

# used_bytes: of the pool, as of its last checkpoint.
used_bytes() { rok-blk df --bytes -o plain | cut -f2; }

volumes_are_attached() {
  for kind in $kinds; do
    rok-blk create "$kind" --size 512M
    [ "$(rok-blk attach "$kind" --depth 64)" = "$(disk_of "$kind")" ]
    mkdir -p "/run/$kind"
  done
  mkdir -p /run/old /run/new
}

tree_is_made() {
  mkdir -p /run/tree/deep/deeper /run/tree/small
  dd if=/dev/urandom of=/run/tree/large bs=1M count=4 2>/dev/null
  dd if=/dev/urandom of=/run/tree/holes bs=4k count=1 seek=3000 2>/dev/null
  for number in $(seq 100); do echo "$number" >"/run/tree/small/$number"; done
  cp -a /sbin /etc /run/tree/deep
  ln /run/tree/large /run/tree/deep/deeper/hard
  ln -s ../large /run/tree/deep/symbolic
  chmod 4750 /run/tree/small/7
  tree_hashes /run/tree >/run/hashes
  [ "$(wc -l </run/hashes)" -gt 200 ]
}

# sectors_discarded DEVICE: of 512 bytes, since it is there.
sectors_discarded() { awk '{ print $14 }' "/sys/block/${1##*/}/stat"; }

# Both programs discard the whole device first.
filesystem_is_made() {
  device=$(disk_of "$1")
  dd if=/dev/urandom of="$device" bs=1M seek=200 count=4 oflag=direct
  discarded=$(sectors_discarded "$device")
  case $1 in ext4) /sbin/mke2fs -q -t ext4 "$device" ;; xfs) /sbin/mkfs.xfs -q "$device" ;; esac
  [ "$(($(sectors_discarded "$device") - discarded))" -ge "$(cat "/sys/block/${device##*/}/size")" ]
  dd if="$device" bs=1M skip=200 count=4 iflag=direct 2>/dev/null | cmp -n $((4 << 20)) - /dev/zero
  mount -t "$1" "$device" "/run/$1"
}

tree_comes_back() {
  cp -a /run/tree "/run/$1"
  umount "/run/$1"
  check "$1" "$(disk_of "$1")"
  echo 3 >/proc/sys/vm/drop_caches
  mount -t "$1" "$(disk_of "$1")" "/run/$1"
  tree_hashes "/run/$1/tree" | cmp - /run/hashes
}

# Of a frozen one, so that it can be read without its journal, which could not be replayed onto a read-only disk.
snapshot_mounts_beside_it() {
  fsfreeze --freeze "/run/$1"
  rok-blk snapshot "$1"
  fsfreeze --unfreeze "/run/$1"
  echo later >"/run/$1/later"
  device=$(rok-blk attach "$1@latest")
  case $1 in ext4) how=noload ;; xfs) how=nouuid,norecovery ;; esac
  mount -t "$1" -o "ro,$how" "$device" /run/old
  tree_hashes /run/old/tree | cmp - /run/hashes
  [ ! -e /run/old/later ]
  [ -e "/run/$1/later" ]
  umount /run/old
  rok-blk detach "$1@latest"
}

# Of one that is in use: its journal is replayed.
clone_goes_its_own_way() {
  echo both >"/run/$1/who"
  sync
  rok-blk snapshot "$1"
  rok-blk clone "$1@latest" "$1-clone"
  device=$(rok-blk attach "$1-clone")
  how=rw
  [ "$1" != xfs ] || how=rw,nouuid
  mount -t "$1" -o "$how" "$device" /run/new
  [ "$(cat /run/new/who)" = both ]
  for place in /run/new "/run/$1"; do
    echo "$place" >"$place/who"
    dd if=/dev/urandom of="$place/own" bs=1M count=1 2>/dev/null
    sha256sum <"$place/own" >"/run/own-${place##*/}"
  done
  rm -r /run/new/tree/small
  umount /run/new
  check "$1" "$device"
  umount "/run/$1"
  echo 3 >/proc/sys/vm/drop_caches
  mount -t "$1" "$(disk_of "$1")" "/run/$1"
  mount -t "$1" -o "$how" "$device" /run/new
  for place in /run/new "/run/$1"; do
    [ "$(cat "$place/who")" = "$place" ]
    sha256sum <"$place/own" | cmp - "/run/own-${place##*/}"
  done
  [ ! -e /run/new/tree/small ]
  # The original has it still; its bytes are compared at the end.
  [ "$(find "/run/$1/tree/small" -type f | wc -l)" = 100 ]
  umount /run/new
  rok-blk detach "$1-clone"
}

large_files_are_written() {
  for kind in $kinds; do dd if=/dev/urandom of="/run/$kind/large" bs=1M count="$large_mib" conv=fsync; done
}

# What the daemon's end finds in the caches is written to the next one.
large_files_are_trimmed() {
  used_bytes >/run/used
  for kind in $kinds; do
    rm "/run/$kind/large"
    # xfs frees what was removed behind the user's back, and is done with that when it is frozen.
    fsfreeze --freeze "/run/$kind"
    fsfreeze --unfreeze "/run/$kind"
    fstrim -v "/run/$kind"
    dd if=/dev/urandom of="/run/$kind/last" bs=1M count=1 2>/dev/null
    sha256sum <"/run/$kind/last" >"/run/last-$kind"
  done
}

# A tenth for what the file systems write by themselves.
trimmed_space_is_back() {
  echo "$(cat /run/used) bytes used before, $(used_bytes) now"
  [ "$(($(cat /run/used) - $(used_bytes)))" -ge $((large_mib * 2 * 9 / 10 << 20)) ]
}

filesystems_end_whole() {
  for kind in $kinds; do
    umount "/run/$kind"
    check "$kind" "$(disk_of "$kind")"
    mount -t "$kind" -o ro "$(disk_of "$kind")" "/run/$kind"
    sha256sum <"/run/$kind/last" | cmp - "/run/last-$kind"
    tree_hashes "/run/$kind/tree" | cmp - /run/hashes
    umount "/run/$kind"
    rok-blk detach "$kind"
  done
}

pool_is_whole() { rok-blk check --pool "$pool" --key-file "$key"; }

# The daemon closes the pool with a checkpoint, so that what is used is known; both stay mounted.
restarted() {
  if stop_daemon && start_daemon; then pass "$1"; else fail "$1" "$(tail -5 /run/daemon.log)"; fi
}

stage pool make_pool
if start_daemon; then
  pass start
  stage attached volumes_are_attached
  stage tree tree_is_made
  for kind in $kinds; do
    stage "$kind-made" filesystem_is_made "$kind"
    stage "$kind-tree" tree_comes_back "$kind"
    stage "$kind-snapshot" snapshot_mounts_beside_it "$kind"
    stage "$kind-clone" clone_goes_its_own_way "$kind"
  done
  stage written large_files_are_written
  restarted restart-written
  stage fstrim large_files_are_trimmed
  restarted restart-trimmed
  stage trimmed trimmed_space_is_back
  stage unmounted filesystems_end_whole
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  stage whole pool_is_whole
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error|XFS .*(orrupt|rror)'
else
  fail start "$(cat <&8)"
fi
tail -n 12 /run/daemon.log | quote
