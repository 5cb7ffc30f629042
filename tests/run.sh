#!/usr/bin/env bash
# Every test that needs no kernel of its own. The simulation has a build of its own: it plants bugs, which the
# binary that the other tests drive must never hold.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

readonly SIMULATION=(--no-default-features --features planted-bugs)
log=$(mktemp "${TMPDIR:-/tmp}/rok-simulation.XXXXXX")
# Also where it is ended before that was shown.
trap 'cat "$log"; rm -f "$log"' EXIT

cargo test --workspace --no-run || exit
cargo test "${SIMULATION[@]}" --test engine --no-run || exit
cargo build "${SIMULATION[@]}" --example interleavings || exit

# It asks for neither disks nor clocks, and takes what the others leave of the processors while they wait for theirs.
simulate() {
  local status=0
  cargo test "${SIMULATION[@]}" --test engine -- --show-output || status=$?
  # Ended by a signal, as all that is run here is to be.
  [ "$status" -lt 128 ] || return "$status"
  cargo run "${SIMULATION[@]}" --example interleavings || status=$?
  return "$status"
}
(renice -n 19 "$BASHPID" >/dev/null; simulate) >"$log" 2>&1 &
simulation=$!

status=0
cargo test --workspace --no-fail-fast -- --show-output || status=$?
wait "$simulation" || status=$?
exit "$status"
