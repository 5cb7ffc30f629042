#!/usr/bin/env bash
# Every test that needs no kernel of its own. The simulation has a build of its own: it plants bugs, which the
# binary that the other tests drive must never hold.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
status=0
cargo test --workspace --no-fail-fast -- --show-output || status=$?
cargo test --no-default-features --features planted-bugs --test engine -- --show-output || status=$?
cargo run --no-default-features --features planted-bugs --example interleavings || status=$?
exit "$status"
