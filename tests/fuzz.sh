#!/usr/bin/env bash
# Feeds every fuzz target with mutated input, from the corpus in the repository on, and closes on one line:
# N passed, N failed, N skipped. New inputs that reach new code stay in the build folder: copy those worth keeping.
#
#   FUZZ_SECONDS=5 tests/fuzz.sh [TARGET...]
#
# cargo-fuzz asks for options that only a nightly compiler takes; RUSTC_BOOTSTRAP lets the stable one take them.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

readonly SECONDS_EACH=${FUZZ_SECONDS:-5}
# What the address sanitizer may take, and how long one input may run.
readonly MEMORY_MIB_MAX=2048 INPUT_SECONDS_MAX=10
export RUSTC_BOOTSTRAP=1 CARGO_TERM_COLOR=never
target_directory=${CARGO_TARGET_DIR:-target}/fuzz
export CARGO_TARGET_DIR=$target_directory
# As cargo-fuzz starts them: code of several crates is in a program more than once.
export ASAN_OPTIONS=detect_odr_violation=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}
platform=$(rustc -vV | awk '$1 == "host:" { print $2 }')

mapfile -t targets < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else cargo fuzz list; fi)
passed=0
failed=0
total=0
# All at once; a target by itself links only that one.
build=(cargo fuzz build)
[ $# != 1 ] || build+=("$1")
if [ ${#targets[@]} = 0 ] || ! "${build[@]}"; then
    echo "fuzz: the targets do not build" >&2
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
logs=$(mktemp -d "${TMPDIR:-/tmp}/rok-fuzz.XXXXXX")
trap 'rm -rf "$logs"' EXIT

# feed TARGET: its log and how it ended are in $logs.
feed() {
    local target=$1 found=$target_directory/found/$1 crashes=fuzz/artifacts/$1/
    mkdir -p "$found" "$crashes"
    "$target_directory/$platform/release/$target" "$found" "fuzz/corpus/$target" -artifact_prefix="$crashes" \
        -max_total_time="$SECONDS_EACH" -timeout="$INPUT_SECONDS_MAX" -rss_limit_mb="$MEMORY_MIB_MAX" -print_final_stats=1 \
        >"$logs/$target" 2>&1
    echo $? >"$logs/$target.status"
}

# One for each processor at a time.
under_way=0
for target in "${targets[@]}"; do
    if [ "$under_way" -ge "$(nproc)" ]; then
        wait -n
        under_way=$((under_way - 1))
    fi
    feed "$target" &
    under_way=$((under_way + 1))
done
wait
for target in "${targets[@]}"; do
    log=$logs/$target
    status=$(cat "$log.status" 2>/dev/null || echo 'did not start')
    executions=$(awk '$1 == "stat::number_of_executed_units:" { print $2 }' "$log")
    if [ "$status" = 0 ] && [ "${executions:-0}" -gt 0 ]; then
        passed=$((passed + 1))
        total=$((total + executions))
        echo "fuzz: $target: $executions executions in $SECONDS_EACH s, nothing found"
    else
        failed=$((failed + 1))
        # An input that breaks something is in fuzz/artifacts, and in the log in base64.
        tail -n 60 "$log" >&2
        echo "fuzz: $target FAILED ($status)" >&2
    fi
done
echo "fuzz: $total executions in all"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
