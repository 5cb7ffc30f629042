#!/bin/bash
# Tests that need a kernel with ublk: builds what they run, boots an emulated machine (vm.sh) for each script, and runs
# them there.
#
#   run.sh           what every change must pass
#   run.sh --long    a hundred kills of the daemon under load and twenty planned restarts, a minute without memory, --power,
#                    --figures, and --kernels with the newer ones. ROK_KILLS, ROK_PLANNED_RESTARTS and ROK_MEMORY_SECONDS
#                    say otherwise
#   run.sh --figures ratios to libublk's own null device and to a loop device. ROK_FIGURE_ROUNDS says how many of each (5),
#                    ROK_FIGURE_CASES which, as a pattern of their names (null-randread-4k-qd1)
#   run.sh --kernels what every change must pass, with fewer kills, and power cuts, on each kernel series of
#                    ROK_KERNEL_SERIES (6.12 6.18 7.x)
#   run.sh --power   power cuts: records the disks of a pool under load, and recovers what a cut leaves of them at a hundred
#                    and twenty points; ROK_POWER_CUTS says otherwise, and tests/power/main.rs what else there is.
#                    ROK_POWER_RECORDING=DIRECTORY cuts an earlier recording
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
nbd_client=()
[ ! -x /usr/sbin/nbd-client ] || nbd_client=(--program /usr/sbin/nbd-client)

# As many machines at a time, since each keeps little more than one processor busy.
machines_max=${ROK_MACHINES:-2}
logs=$(mktemp -d "${TMPDIR:-/tmp}/rok-kernel.XXXXXX")
# Called by the trap.
# shellcheck disable=SC2317
finish() {
  local running
  mapfile -t running < <(jobs -p)
  [ ${#running[@]} = 0 ] || kill "${running[@]}" 2>/dev/null || true
  wait
  rm -rf "$logs"
}
trap finish EXIT
begun_count=0

# Before several look for it at once. Each machine tells of what is missing.
bash -c 'missing() { exit 0; }; source "$1"; find_kernel' find-kernel "$here/find-kernel.sh"

# run LOG COMMAND...: its output comes out as one piece.
run() {
  local log=$1 result=0
  shift
  "$@" >"$log" 2>&1 || result=$?
  echo "$result" >"$log.result"
  flock "$logs" cat "$log"
}

# begin COMMAND...: in the background, as soon as there is a place for it. It closes on the counts, as everything here does.
begin() {
  while [ "$(jobs -rp | wc -l)" -ge "$machines_max" ]; do wait -n || true; done
  begun_count=$((begun_count + 1))
  run "$logs/$begun_count" "$@" &
}

# machine ARGUMENT...: one machine with a kernel that has the driver.
machine() { begin "$here/vm.sh" --module configfs --module ublk_drv "${programs[@]}" "$@"; }

# survive SECONDS_MAX [ARGUMENT]...
survive() {
  machine --script "$here/survive.sh" --disk-mib 1024 --seconds-max "$1" --program "$target/debug/rok-blk" "${@:2}"
}

# deployed SCRIPT [ARGUMENT]...: as deploy/ installs it.
deployed() {
  # Without fio, which would only make the machine larger.
  local programs=(--program /sbin/mke2fs --program /sbin/e2fsck)
  machine --script "$here/$1" --disk-mib 512 --program "$target/debug/rok-blk" --program /usr/bin/setpriv \
    --program /bin/udevadm --file deploy/60-rok-blk.rules --file /lib/udev/rules.d/50-udev-default.rules \
    --file /lib/udev/rules.d/60-block.rules "${@:2}"
}

under_systemd() {
  deployed systemd.sh --program /usr/lib/systemd/systemd --program /usr/bin/systemctl --file deploy/rok-blk.service
}

# It has no use for fio, nor has memory.
filesystems() {
  local programs=(--program /sbin/mke2fs --program /sbin/e2fsck --program /sbin/mkfs.xfs --program /sbin/xfs_repair)
  machine --script "$here/filesystems.sh" --disk-mib 1024 --module xfs --program "$target/debug/rok-blk"
}

# The driver without the program.
null_shared_ring() {
  machine --script "$here/null_shared_ring.sh" --disk-mib 64 \
    --program "$target/debug/examples/null_shared_ring" --program "$target/debug/examples/control_cases"
}

# memory MIB [ARGUMENT]...
memory() {
  local programs=(--program /sbin/mke2fs --program /sbin/e2fsck)
  machine --script "$here/memory.sh" --disk-mib 768 --memory-mib "$1" --program "$target/debug/rok-blk" \
    --program /usr/bin/setpriv "${@:2}"
}

# The library's own example, as it is released, built in a place of its own.
figures() {
  cargo install --quiet --locked --root "$target/libublk" --example null libublk@0.4.8
  machine --script "$here/figures.sh" --disk-mib 1024 --seconds-max 1800 --module loop --program /sbin/losetup \
    --program "$target/debug/examples/lane_device" --program "$target/libublk/bin/null" \
    --setting "ROK_FIGURE_ROUNDS=${ROK_FIGURE_ROUNDS:-5}" --setting "ROK_FIGURE_CASES=${ROK_FIGURE_CASES:-}"
}

# power_cuts: a machine whose disks are recorded, and the cuts. A recording that has failed is kept.
power_cuts() {
  local recording=${ROK_POWER_RECORDING:-} programs=(--program /sbin/mke2fs)
  if [ -z "$recording" ]; then
    recording=$(mktemp -d "${TMPDIR:-/tmp}/rok-power.XXXXXX")
    machine --script "$here/power.sh" --disk-mib 512 --meta-disk-mib 192 --recording "$recording" --seconds-max 1800 \
      --program "$target/debug/rok-blk" --setting "ROK_POWER_ROUNDS=${ROK_POWER_ROUNDS:-80}" \
      --setting "ROK_POWER_KILLS=${ROK_POWER_KILLS:-3}"
    wait
    if [ "$(cat "$logs/$begun_count.result")" != 0 ]; then
      echo "NOTE the recording is in $recording"
      return
    fi
  fi
  begin env "ROK_POWER_CUTS=${ROK_POWER_CUTS:-120}" "ROK_POWER_CONTROLS=${ROK_POWER_CONTROLS:-12}" \
    "$target/debug/examples/power_cuts" "$recording" "$target/debug/rok-blk"
  wait
  if [ "$(cat "$logs/$begun_count.result")" = 0 ] && [ -z "${ROK_POWER_RECORDING:-}" ]; then
    rm -rf "$recording"
  else
    echo "NOTE the recording is in $recording (ROK_POWER_RECORDING=$recording)"
  fi
}

# scripts: those that run beside each other. The longest first, so that none of them is the last one and alone.
scripts() {
  filesystems
  machine --script "$here/attach.sh" --disk-mib 1024 --program "$target/debug/rok-blk" --seconds-max 900 \
    --setting "ROK_ATTACH_ROUNDS=${ROK_ATTACH_ROUNDS:-3}"
  machine --script "$here/lane_device.sh" --disk-mib 768 --program "$target/debug/examples/lane_device"
  machine --script "$here/nbd_disk.sh" --module nbd --disk-mib 1024 --program "$target/debug/rok-blk" \
    ${nbd_client[@]+"${nbd_client[@]}"}
  survive 600 --setting ROK_SURVIVE_PARTS=states
  # Shorter than in the long run.
  memory 640 --setting "ROK_MEMORY_SECONDS=${ROK_MEMORY_SECONDS:-5}"
  under_systemd
  deployed deploy.sh
}

# on_kernel SERIES: all scripts on another kernel, with a few kills and power cuts. A kernel that cannot be had is a skip.
on_kernel() {
  wait
  echo "NOTE kernel series $1"
  export ROK_KERNEL_SERIES=$1 ROK_REQUIRE_KERNEL=0 ROK_REQUIRE_ALL=0
  null_shared_ring
  wait
  [ "$(cat "$logs/$begun_count.result")" != 77 ] || return 0
  # Alone, since it tells how long requests wait.
  survive 1800 --setting ROK_SURVIVE_PARTS=load --setting ROK_KILLS=5 --setting ROK_PLANNED_RESTARTS=3
  wait
  ROK_ATTACH_ROUNDS=${ROK_ATTACH_ROUNDS:-60} scripts
  wait
  ROK_POWER_CUTS=${ROK_POWER_CUTS:-40} power_cuts
}

case ${1:-} in
  '')
    # Alone, since it tells how long requests wait.
    survive 600 --setting ROK_SURVIVE_PARTS=load
    wait
    scripts
    null_shared_ring
    ;;
  --long)
    survive 7200 --setting "ROK_KILLS=${ROK_KILLS:-100}" --setting "ROK_PLANNED_RESTARTS=${ROK_PLANNED_RESTARTS:-20}"
    wait
    memory 1024 --setting "ROK_MEMORY_SECONDS=${ROK_MEMORY_SECONDS:-60}"
    wait
    power_cuts
    wait
    # Nothing else may run beside what is measured.
    figures
    for series in 6.18 7.x; do on_kernel "$series"; done
    # On the last one.
    wait
    figures
    ;;
  --kernels) for series in ${ROK_KERNEL_SERIES:-6.12 6.18 7.x}; do on_kernel "$series"; done ;;
  --figures) figures ;;
  --power) power_cuts ;;
  *)
    sed -n '2,16p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

wait
passed=0 failed=0 skipped=0 status=0
for log in $(seq -f "$logs/%.0f" "$begun_count"); do
  # A machine without a closing line has failed, whatever its status.
  counts=(0 1 0) result=1
  if line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1) && [ -n "$line" ]; then
    read -ra counts <<<"${line//[!0-9 ]/}"
    result=$(cat "$log.result")
  fi
  passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
  [ "$result" = 0 ] || [ "$result" = 77 ] || status=$result
done
# What was skipped is no failure beside what has passed.
[ "$status" != 0 ] || [ "$passed" != 0 ] || status=77
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
