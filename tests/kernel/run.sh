#!/bin/bash
# Tests that need a kernel with ublk: builds what they run, boots an emulated machine (vm.sh), runs them there.
#
# Exit status and last line as in vm.sh: 77 and "SKIP" with a reason when qemu or a kernel cannot be had, unless
# ROK_REQUIRE_KERNEL=1 or ROK_REQUIRE_ALL=1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build -j2 -p rok-ublk --examples
optional=()
# fio brings many libraries along, and is worth it: it verifies what it wrote.
[ ! -x /usr/bin/fio ] || optional=(--program /usr/bin/fio)
exec "$here/vm.sh" --script "$here/null_shared_ring.sh" --module configfs --module ublk_drv --disk-mib 64 \
  --program "$target/debug/examples/null_shared_ring" --program "$target/debug/examples/control_cases" \
  --program /sbin/mke2fs --program /sbin/e2fsck "${optional[@]}"
