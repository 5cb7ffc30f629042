#!/bin/bash
# Tests that need a kernel with ublk: builds what they run, boots an emulated machine (vm.sh) for each script, and runs
# them there.
#
#   run.sh           what every change must pass
#   run.sh --long    a hundred kills of the daemon under load and twenty planned restarts; ROK_KILLS and
#                    ROK_PLANNED_RESTARTS say otherwise
#
# Closes on "N passed, N failed, N skipped", the sum of all machines. Exit status as in vm.sh: 77 and "SKIP" with a reason
# when qemu or a kernel cannot be had, unless ROK_REQUIRE_KERNEL=1 or ROK_REQUIRE_ALL=1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
# Of the whole workspace: one package alone would have its dependencies built again with other features.
cargo build --workspace --bins --examples
programs=(--program /sbin/mke2fs --program /sbin/e2fsck --program /sbin/resize2fs)
# fio brings many libraries along, and is worth it: it verifies what it wrote.
[ ! -x /usr/bin/fio ] || programs+=(--program /usr/bin/fio)

passed=0 failed=0 skipped=0 status=0

# machine ARGUMENT...: one machine, whose counts are added to the sums.
machine() {
  local log counts result=0
  log=$(mktemp "${TMPDIR:-/tmp}/rok-kernel.XXXXXX")
  "$here/vm.sh" --module configfs --module ublk_drv "${programs[@]}" "$@" | tee "$log" || result=$?
  read -ra counts < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$log" | tail -n 1)
  rm -f "$log"
  # A machine without a closing line has failed, whatever its status.
  [ "${#counts[@]}" = 3 ] || counts=(0 1 0)
  passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
  [ "$result" = 0 ] || status=$result
}

# survive SECONDS_MAX [ARGUMENT]...
survive() {
  machine --script "$here/survive.sh" --disk-mib 1024 --seconds-max "$1" --program "$target/debug/rok-blk" "${@:2}"
}

# deployed: as deploy/ installs it.
deployed() {
  # Without fio, which would only make the machine larger.
  local programs=(--program /sbin/mke2fs --program /sbin/e2fsck)
  machine --script "$here/deploy.sh" --disk-mib 512 --program "$target/debug/rok-blk" --program /usr/bin/setpriv \
    --program /bin/udevadm --file deploy/60-rok-blk.rules --file /lib/udev/rules.d/50-udev-default.rules \
    --file /lib/udev/rules.d/60-block.rules
}

case ${1:-} in
  '')
    machine --script "$here/null_shared_ring.sh" --disk-mib 64 \
      --program "$target/debug/examples/null_shared_ring" --program "$target/debug/examples/control_cases"
    machine --script "$here/lane_device.sh" --disk-mib 768 --program "$target/debug/examples/lane_device"
    machine --script "$here/attach.sh" --disk-mib 1024 --program "$target/debug/rok-blk"
    survive 600
    deployed
    ;;
  --long)
    survive 7200 --setting "ROK_KILLS=${ROK_KILLS:-100}" --setting "ROK_PLANNED_RESTARTS=${ROK_PLANNED_RESTARTS:-20}"
    ;;
  *)
    sed -n '2,9p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
