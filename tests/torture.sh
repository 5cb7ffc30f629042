#!/usr/bin/env bash
# The long modes in turns, each going on where its last run ended: seeds of the simulation, crash states, flips, kills of real
# daemons, fuzzing. What each run reached is a line of docs/torture.tsv, so that ten runs of half an hour count as one of five hours.
#
#   tests/torture.sh HOURS    runs for about so long (0.5 is half an hour); ends at the first failure, whose line is not added
#   tests/torture.sh --sum    what was reached so far
#
# ROK_TORTURE_MODES='seeds crashes flips kills fuzz' says which. Closes on "N passed, N failed, N skipped".
set -euo pipefail
cd "$(dirname "$0")/.."

readonly RECORD=docs/torture.tsv
# Before the record is the first change of the tree.
COMMIT=$(git describe --always --dirty)
readonly COMMIT
# How much of each in a turn: some minutes on two processors.
readonly SEEDS=1000 CRASH_STATES=200000 FLIPS=65536 KILLS=250 FUZZ_SECONDS_EACH=20

usage() {
  sed -n '5,8p' "$0" >&2
  exit 2
}

# sum_up: of each mode how much was done, and up to where.
sum_up() {
  awk -F '\t' 'NR > 1 { done[$3] += $6; if ($5 > end[$3]) end[$3] = $5; runs[$3]++ }
    END { for (mode in done) printf "%s: %d in %d turns; the next begins at %d\n", mode, done[mode], runs[mode], end[mode] }' \
    "$RECORD" | sort
}

# end_of MODE: where its last turn ended.
end_of() { awk -F '\t' -v mode="$1" 'NR > 1 && $3 == mode && $5 > end { end = $5 } END { print end + 0 }' "$RECORD"; }

# note MODE FIRST END DONE SUMMARY
note() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%F)" "$COMMIT" "$@" >>"$RECORD"
  echo "torture: $1 from $2 to $3: $5"
}

# one TEST ARGUMENT...: runs a test of the target that the arguments say; what it prints is in $log.
one() {
  local test=$1
  shift
  cargo test --quiet "$@" -- --exact --nocapture "$test" >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    return 1
  }
}

# engine TEST: of the simulation.
engine() { one "$1" --no-default-features --features planted-bugs --test engine; }

turn_of_seeds() {
  local first
  first=$(end_of seeds)
  ROK_FIRST_SEED=$first ROK_SEEDS=$SEEDS engine no_seed_finds_a_difference_from_the_model || return 1
  note seeds "$first" $((first + SEEDS)) $SEEDS 'no difference from the model'
}

turn_of_crashes() {
  local first all beside end
  first=$(end_of crashes)
  ROK_CRASH_FIRST=$first ROK_CRASH_STATES=$CRASH_STATES engine crash_states::no_crash_state_breaks_the_contract || return 1
  # The short workloads are the same each time, and do not count again.
  beside=$(sed -n 's/^all subsets[^:]*: \([0-9]*\) crash states.*/\1/p' "$log")
  all=$(sed -n 's/^with workloads [^:]*: \([0-9]*\) crash states.*/\1/p' "$log")
  end=$(sed -n 's/^with workloads [0-9]* to \([0-9]*\):.*/\1/p' "$log")
  note crashes "$first" "$end" $((all - beside)) "$(sed -n 's/^with workloads [^:]*: //p' "$log")"
}

turn_of_flips() {
  local first
  first=$(end_of flips)
  ROK_FIRST_BIT_FLIP=$first ROK_BIT_FLIPS=$FLIPS engine flips::each_flipped_bit_is_detected_or_without_effect || return 1
  note flips "$first" $((first + FLIPS)) $FLIPS "$(sed -n 's/^flips from [0-9]*: //p' "$log")"
}

turn_of_kills() {
  local first
  first=$(end_of kills)
  # The number of its first kill is the seed of a turn.
  ROK_SEED=$first ROK_KILL_CYCLES=$KILLS one kill::no_acknowledged_write_is_lost_by_kills --test server || return 1
  note kills "$first" $((first + KILLS)) $KILLS "$(sed -n 's/^Counts { \(.*\) }, \([0-9]*\) requests acknowledged.*/\1, \2 requests acknowledged, none lost/p' "$log")"
}

turn_of_fuzz() {
  local count first
  FUZZ_SECONDS=$FUZZ_SECONDS_EACH tests/fuzz.sh >"$log" 2>&1 || { tail -n 40 "$log" >&2; return 1; }
  count=$(sed -n 's/^fuzz: \([0-9]*\) executions in all$/\1/p' "$log")
  first=$(end_of fuzz)
  note fuzz "$first" $((first + count)) "$count" "$(tail -n 1 "$log")"
}

case ${1:-} in
  --sum)
    sum_up
    exit
    ;;
  '' | *[!0-9.]*) usage ;;
esac
seconds=$(awk -v hours="$1" 'BEGIN { printf "%d", hours * 3600 }')
log=$(mktemp "${TMPDIR:-/tmp}/rok-torture.XXXXXX")
trap 'rm -f "$log"' EXIT
passed=0
while [ "$SECONDS" -lt "$seconds" ]; do
  for mode in ${ROK_TORTURE_MODES:-seeds crashes flips kills fuzz}; do
    if ! "turn_of_$mode"; then
      echo "torture: $mode failed"
      echo "$passed passed, 1 failed, 0 skipped"
      exit 1
    fi
    passed=$((passed + 1))
    [ "$SECONDS" -lt "$seconds" ] || break
  done
done
sum_up
echo "$passed passed, 0 failed, 0 skipped"
