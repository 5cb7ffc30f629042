# In the emulated machine: as deploy/ installs it. udev has our rule; the daemon runs as its own user with the two capabilities of
# the unit and nothing else, in a mount namespace that follows the host's. Disks are used by their names in /dev/rok.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

# CAP_SYS_ADMIN and CAP_SYS_RESOURCE.
capabilities=0000000001200000
only='-all,+sys_admin,+sys_resource'
user="/usr/bin/setpriv --reuid rok-blk --regid rok-blk --clear-groups --no-new-privs --inh-caps $only --ambient-caps $only
  --bounding-set $only"
# What systemd makes of MountFlags=slave.
as="env ROK_SOCKET=/run/rok-blk/control.sock unshare -m --propagation slave $user"
pool=/run/state/pool
key=/run/state/pool.key

make_users() {
  printf 'rok-blk:x:990:990::/:/bin/sh\n' >>/etc/passwd
  printf 'rok-blk:x:990:\ndisk:x:6:\n' >>/etc/group
  mkdir -m 700 /run/state /run/rok-blk
  chown rok-blk:rok-blk /run/state /run/rok-blk
  # As systemd has it; the kernel's own start is a private one.
  mount --make-rshared /
}

start_udev() {
  mkdir -p /etc/udev/rules.d
  cp /etc/files/*.rules /etc/udev/rules.d/
  # docs/DEPLOYMENT.md: the pool's disk is the daemon's.
  echo 'SUBSYSTEM=="block", KERNEL=="vda", OWNER="rok-blk"' >/etc/udev/rules.d/70-rok-blk-pool.rules
  ln -s /bin/udevadm /bin/systemd-udevd
  systemd-udevd --daemon
  udevadm trigger --settle /sys/class/misc/ublk-control /sys/block/vda
  [ "$(stat -c %U:%G:%a /dev/ublk-control)" = root:rok-blk:660 ]
  [ "$(stat -c %U /dev/vda)" = rok-blk ]
}

make_pool_as_user() {
  $user rok-blk pool create "$pool" --device /dev/vda --key-file "$key" --generate-key
}

# field NAME: of the daemon's status, with one blank between values.
field() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$daemon/status" | tr '\t' ' '; }

privileges_are_two_capabilities() {
  grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs):' "/proc/$daemon/status"
  [ "$(field Uid)" = '990 990 990 990' ]
  [ "$(field Gid)" = '990 990 990 990' ]
  [ -z "$(field Groups | tr -d ' ')" ]
  for set in CapPrm CapEff CapBnd; do [ "$(field $set)" = $capabilities ]; done
  [ "$(field NoNewPrivs)" = 1 ]
  # Nothing to gain one more from.
  [ -z "$(find /bin/rok-blk -perm /6000)" ]
}

# linked NAME DEVICE: udev has made the link.
linked() {
  udevadm settle
  [ "$(readlink -f "/dev/rok/$1")" = "$2" ]
}

# unlinked NAME
unlinked() {
  udevadm settle
  [ ! -L "/dev/rok/$1" ]
}

names_lead_to_disks() {
  rok-blk create vol1 --size 96M
  rok-blk create vol2 --size 32M
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  linked vol1 /dev/ublkb0
  [ "$(stat -c %U:%G:%a /dev/ublkc0)" = root:rok-blk:660 ]
  [ "$(stat -c %U:%G /dev/ublkb0)" = rok-blk:disk ]
  # Written by udev: the daemon may not.
  [ "$(cat /sys/block/ublkb0/queue/nr_requests)" = 127 ]
  rok-blk snapshot vol1
  rok-blk attach vol1@1
  linked vol1@1 /dev/ublkb1
  ls -l /dev/rok
}

partitions_have_names() {
  rok-blk attach vol2 --id 2
  linked vol2 /dev/ublkb2
  printf 'n\np\n1\n\n\nw\n' | fdisk /dev/ublkb2
  linked vol2.part1 /dev/ublkb2p1
  rok-blk rename vol2 parted
  linked parted /dev/ublkb2
  linked parted.part1 /dev/ublkb2p1
  unlinked vol2.part1
}

# What a daemon left behind names no disk of somebody else, and nothing names a path.
other_disks_have_no_names() {
  own="/run/rok-blk/devices/ublkb2.$(cat /sys/block/ublkb2/diskseq)"
  mv "$own" /run/rok-blk/devices/ublkb2.999999
  udevadm trigger --settle /sys/block/ublkb2
  unlinked parted
  echo ROK_NAME=../vda >"$own"
  udevadm trigger --settle /sys/block/ublkb2
  [ -b /dev/vda ]
  [ ! -L /dev/vda ]
  rok-blk detach parted
  [ -z "$(find /run/rok-blk/devices -name 'ublkb2.*')" ]
}

rename_moves_the_links() {
  rok-blk rename vol1 other-name
  linked other-name /dev/ublkb0
  linked other-name@1 /dev/ublkb1
  unlinked vol1
  unlinked vol1@1
  rok-blk rename other-name vol1
  linked vol1 /dev/ublkb0
}

# mounted_for_daemon: how many mounts of our disks the daemon's namespace has.
mounted_for_daemon() { grep -c " $(cat /sys/block/ublkb0/dev) " "/proc/$daemon/mountinfo" || true; }

container_writes_a_filesystem() {
  /sbin/mke2fs -q -t ext4 /dev/rok/vol1
  mount -t ext4 /dev/rok/vol1 /mnt
  mkdir /run/box
  # A container's namespace, which has nothing of the host but this.
  unshare -m --propagation private sh -c 'mount --bind /mnt /run/box && dd if=/dev/urandom of=/run/box/file bs=1M count=8 conv=fsync'
  [ -z "$(ls /run/box)" ]
  sha256sum </mnt/file >/run/hash
}

disk_in_use_is_not_taken_away() {
  fails 7 'mounted' rok-blk detach vol1
  umount /mnt
  [ "$(mounted_for_daemon)" = 0 ]
  exec 7</dev/rok/vol1
  # root looks itself; the daemon's user may not, and says so.
  fails 7 'have it open' rok-blk detach vol1
  # shellcheck disable=SC2086 # words
  (exec 7<&- && fails 7 'cannot be told' $as rok-blk detach vol1)
  exec 7<&-
  [ -b /dev/ublkb0 ]
  mount -t ext4 /dev/rok/vol1 /mnt
}

killed_daemon_comes_back_with_the_links() {
  [ "$copy_status" = 0 ]
  sha256sum </mnt/copy | cmp - /run/hash
  linked vol1 /dev/ublkb0
  linked vol1@1 /dev/ublkb1
  [ "$(rok-blk devices -o jsonl | grep -c '"state":"live"')" = 2 ]
}

# The new daemon began with the host's mounts. What the host unmounts, it has not either, so it is never the last.
host_unmounts_for_the_daemon() {
  [ "$(mounted_for_daemon)" = 1 ]
  umount /mnt
  [ "$(mounted_for_daemon)" = 0 ]
  /sbin/e2fsck -f -n /dev/rok/vol1
}

# The daemon cannot tell that nobody uses them: they stay.
restart_keeps_disks() {
  [ -b /dev/ublkb0 ]
  linked vol1 /dev/ublkb0
  [ "$(rok-blk devices -o jsonl | grep -c '"state":"live"')" = 2 ]
  same_bytes /run/start /dev/rok/vol1@1
}

detach_removes_the_links() {
  rok-blk detach vol1 vol1@1
  unlinked vol1
  unlinked vol1@1
  [ ! -e /dev/rok ]
  [ -z "$(ls /run/rok-blk/devices)" ]
  [ -z "$(find /dev -name 'ublk[bc]*')" ]
}

pool_is_whole() { $user rok-blk check --pool "$pool" --key-file "$key"; }

stage users make_users
stage udev start_udev
stage pool make_pool_as_user
if start_daemon; then
  pass start
  stage privileges privileges_are_two_capabilities
  stage names names_lead_to_disks
  dd if=/dev/ublkb1 of=/run/start bs=1M count=1 iflag=direct 2>/dev/null
  stage partitions partitions_have_names
  stage others other_disks_have_no_names
  stage rename rename_moves_the_links
  stage container container_writes_a_filesystem
  stage in-use disk_in_use_is_not_taken_away
  kill -KILL "$daemon"
  wait "$daemon"
  # Waits for the next daemon.
  dd if=/mnt/file of=/mnt/copy bs=1M conv=fsync 2>/run/copy.log &
  copy=$!
  if start_daemon; then pass recovery; else fail recovery "$(tail -5 /run/daemon.log)"; fi
  wait "$copy"
  copy_status=$?
  stage killed killed_daemon_comes_back_with_the_links
  stage namespaces host_unmounts_for_the_daemon
  if stop_daemon && start_daemon; then pass restart; else fail restart "$(tail -5 /run/daemon.log)"; fi
  stage kept restart_keeps_disks
  stage detach detach_removes_the_links
  if stop_daemon; then pass end; else fail end "$(tail -5 /run/daemon.log)"; fi
  stage whole pool_is_whole
  stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
else
  fail start "$(tail -5 /run/daemon.log)"
fi
tail -n 12 /run/daemon.log | quote
