# In the emulated machine: systemd itself is the first process and runs deploy/rok-blk.service as docs/DEPLOYMENT.md has it: with its
# sandbox, its key as a credential, and its restarts. A daemon that is killed, and one that is restarted, under a mounted file system.
#
# The first process of the machine prepares it with this script and becomes systemd, which runs the script again as a service.

# shellcheck source=tests/kernel/daemon.sh
. /etc/daemon.sh

# CAP_SYS_ADMIN and CAP_SYS_RESOURCE.
capabilities=0000000001200000
pool=/var/lib/rok-blk/pool
units=/etc/systemd/system

make_user() {
  printf 'rok-blk:x:990:990::/var/lib/rok-blk:/bin/sh\n' >>/etc/passwd
  printf 'rok-blk:x:990:\ndisk:x:6:\n' >>/etc/group
  mkdir -p /var/lib/rok-blk /var/tmp /usr/bin /etc/rok-blk /etc/udev/rules.d
  chmod 700 /var/lib/rok-blk
  chown rok-blk:rok-blk /var/lib/rok-blk
  ln -s /bin/rok-blk /usr/bin/rok-blk
}

# As installed, and what docs/DEPLOYMENT.md says of a pool on a disk. What is logged goes to a file, since there is no journal.
install_units() {
  mkdir -p $units/rok-blk.service.d
  cp /etc/files/rok-blk.service $units/
  printf '[Service]\nDeviceAllow=/dev/vda rw\nStandardError=append:/run/daemon.log\n' >$units/rok-blk.service.d/disk.conf
  # What all units need. Those of the distribution bring a whole boot along.
  for target in sysinit basic shutdown multi-user; do printf '[Unit]\nDescription=%s\n' $target >$units/$target.target; done
  ln -s multi-user.target $units/default.target
  cat >$units/exercise.service <<'UNIT'
[Unit]
Description=The script
[Service]
Type=exec
ExecStart=/bin/sh -c 'exec /bin/sh /etc/script.sh >/dev/console 2>&1'
UNIT
  mkdir $units/multi-user.target.wants
  ln -s ../exercise.service $units/multi-user.target.wants/
  cp /etc/files/*.rules /etc/udev/rules.d/
  echo 'SUBSYSTEM=="block", KERNEL=="vda", OWNER="rok-blk"' >/etc/udev/rules.d/70-rok-blk-pool.rules
  ln -s /bin/udevadm /bin/systemd-udevd
}

start_udev() {
  systemd-udevd --daemon
  udevadm trigger --settle /sys/class/misc/ublk-control /sys/block/vda
  [ "$(stat -c %U /dev/vda)" = rok-blk ]
}

make_pool_as_documented() {
  /usr/bin/setpriv --reuid rok-blk --regid rok-blk --clear-groups \
    rok-blk pool create $pool --device /dev/vda --key-file /var/lib/rok-blk/pool.key --generate-key
  mv /var/lib/rok-blk/pool.key /etc/rok-blk/pool.key
  chown root:root /etc/rok-blk/pool.key
  chmod 400 /etc/rok-blk/pool.key
}

# property NAME: of the service.
property() { systemctl show --property="$1" --value rok-blk; }

service_starts() {
  systemctl start rok-blk
  [ "$(property ActiveState)/$(property SubState)" = active/running ]
}

# field NAME: of the daemon's status, with one blank between values.
field() { sed -n "s/^$1:[[:space:]]*//p" "/proc/$(property MainPID)/status" | tr '\t' ' '; }

daemon_is_confined() {
  process=/proc/$(property MainPID)
  [ "$(field Uid)" = '990 990 990 990' ]
  for set in CapPrm CapEff CapBnd; do [ "$(field $set)" = $capabilities ]; done
  [ "$(field NoNewPrivs)/$(field Seccomp)" = 1/2 ]
  [ "$(readlink "$process/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ]
  # Read-only but for its own.
  grep -E ' / / ro[ ,]' "$process/mountinfo"
  grep ' /var/lib/rok-blk rw[ ,]' "$process/mountinfo"
  grep 'Max locked memory  *unlimited' "$process/limits"
  # The kernel kills it last, and it has said nothing of what it was refused.
  [ "$(cat "$process/oom_score_adj")" -le -999 ]
  refused grep -E 'IO flusher|not locked|oom_score_adj' /run/daemon.log
  refused /usr/bin/setpriv --reuid rok-blk --clear-groups cat /etc/rok-blk/pool.key
}

disk_has_a_filesystem() {
  rok-blk create vol1 --size 128M
  [ "$(rok-blk attach vol1)" = /dev/ublkb0 ]
  udevadm settle
  [ "$(readlink -f /dev/rok/vol1)" = /dev/ublkb0 ]
  /sbin/mke2fs -q -t ext4 /dev/rok/vol1
  mount -t ext4 /dev/rok/vol1 /mnt
  mkdir /run/hashes
}

# Files, one after the other, each with other data, until /run/end is there; keeps what each must be. Ends at the first that fails.
write_files() {
  count=0
  while [ ! -e /run/end ]; do
    dd if=/dev/urandom of=/run/data bs=64k count=8 2>/dev/null
    dd if=/run/data of="/mnt/$((count % 16))" bs=64k conv=fsync || return 1
    sha256sum </run/data >"/run/hashes/$((count % 16))"
    count=$((count + 1))
    echo >>/run/beats
  done
}

killed_daemon_is_started_again() {
  before=$(property MainPID)
  systemctl kill --signal=KILL --kill-whom=main rok-blk
  await_files 3
  [ "$(property NRestarts)" = 1 ]
  [ "$(property MainPID)" != "$before" ]
  [ "$(property ActiveState)" = active ]
}

daemon_is_restarted() {
  before=$(property MainPID)
  systemctl restart rok-blk
  await_files 3
  [ "$(property MainPID)" != "$before" ]
  [ "$(property Result)/$(property ActiveState)" = success/active ]
}

load_had_no_error() {
  [ "$writer_status" = 0 ] || { tail -5 /run/writer.log; return 1; }
  [ "$(readlink -f /dev/rok/vol1)" = /dev/ublkb0 ]
  umount /mnt
  /sbin/e2fsck -f -n /dev/rok/vol1
  echo 3 >/proc/sys/vm/drop_caches
  mount -t ext4 -o ro /dev/rok/vol1 /mnt
  for file in $(ls /run/hashes); do sha256sum <"/mnt/$file" | cmp - "/run/hashes/$file"; done
  umount /mnt
}

service_ends() {
  rok-blk detach vol1
  systemctl stop rok-blk
  [ "$(property ActiveState)/$(property Result)" = inactive/success ]
  [ -z "$(find /dev -name 'ublk[bc]*')" ]
  # What it leaves in /run is not root's, which is no reason to say anything else.
  fails 11 'No daemon answers' rok-blk ls
}

# root may read the pool; what it makes there must not be root's, so it looks as the daemon's user.
pool_is_whole() {
  cp /etc/rok-blk/pool.key /run/check.key
  chown rok-blk /run/check.key
  /usr/bin/setpriv --reuid rok-blk --regid rok-blk --clear-groups rok-blk check --pool $pool --key-file /run/check.key
}

if [ $$ = 1 ]; then
  stage user make_user
  stage units install_units
  stage udev start_udev
  stage pool make_pool_as_documented
  exec env -i /usr/lib/systemd/systemd
fi

. /etc/environment
. /etc/guest.sh
stage start service_starts
stage confined daemon_is_confined
stage filesystem disk_has_a_filesystem
: >/run/beats
write_files 2>/run/writer.log &
writer=$!
stage killed killed_daemon_is_started_again
stage restarted daemon_is_restarted
touch /run/end
wait "$writer"
writer_status=$?
stage load load_had_no_error
stage end service_ends
stage whole pool_is_whole
stage kernel-log kernel_is_calm 'BUG:|WARNING:|Oops|blocked for more|I/O error|EXT4-fs error'
tail -n 12 /run/daemon.log | quote
systemctl status rok-blk --no-pager 2>&1 | quote
echo "VM END"
poweroff -f
