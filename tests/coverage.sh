#!/usr/bin/env bash
# Measures which lines of pool, volume, format and crypto the tests of the library and the simulation run, without those of the
# tests themselves. Closes on "N passed, N failed, N skipped": one for each of the four and one for all, passed with 92 %.
#
#   tests/coverage.sh    ROK_SEEDS=300 ROK_CRASH_STATES=10000 ROK_BIT_FLIPS=4096 say how long the simulation runs
#
# Lists the lines that nothing ran in target/coverage/missed.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly WANTED=92
readonly ROOMS="crypto format pool volume"
work=$PWD/target/coverage
tools=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
if [ ! -x "$tools/llvm-profdata" ]; then
  echo "coverage: the compiler's llvm-tools are not there; get them with: rustup component add llvm-tools" >&2
  exit 1
fi
rm -rf "$work"
mkdir -p "$work"
# Of the project's crates alone: what they depend on need not be built again.
printf '#!/bin/sh\nexec "$@" -C instrument-coverage\n' >"$work/rustc"
chmod +x "$work/rustc"
export RUSTC_WORKSPACE_WRAPPER=$work/rustc CARGO_TERM_COLOR=never
export ROK_SEEDS=${ROK_SEEDS:-300} ROK_CRASH_STATES=${ROK_CRASH_STATES:-10000} ROK_BIT_FLIPS=${ROK_BIT_FLIPS:-4096}
# A program of the build writes one too.
export LLVM_PROFILE_FILE=$work/%m-%p.profraw

# Planted bugs are found elsewhere: it takes long, and runs what the rest does.
tests=(cargo test --no-default-features --features planted-bugs --lib --test engine)
"${tests[@]}" --no-run 2>&1 | tee "$work/build.log" | grep -E '^error|warning: unused' || true
# Those of the other crates are built with them, and do not matter here.
mapfile -t programs < <(sed -n 's/^ *Executable .* (\(.*\/\(rok_blk\|engine\)-[0-9a-f]*\))$/\1/p' "$work/build.log")
if [ ${#programs[@]} != 2 ]; then
  tail -n 20 "$work/build.log" >&2
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
if ! "${tests[@]}" -- --skip each_planted --skip bugs_that_concern >"$work/tests.log" 2>&1; then
  grep -E '^test .*FAILED|panicked at|^test result' "$work/tests.log" >&2
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
grep '^test result' "$work/tests.log"

"$tools/llvm-profdata" merge --sparse "$work"/*.profraw -o "$work/merged"
"$tools/llvm-cov" export --format=lcov --instr-profile "$work/merged" "${programs[0]}" --object "${programs[1]}" \
  --ignore-filename-regex '(_tests|/tests)(/.*)?\.rs$' >"$work/lines"
rm -f "$work"/*.profraw

# What follows `#[cfg(test)]` before a module with a body is the tests of a file, and its end.
awk -F '[:,]' -v root="$PWD/src/" -v rooms="$ROOMS" -v wanted="$WANTED" -v missed="$work/missed.txt" '
  function tests_from(file,   line, number, is_marked) {
    number = is_marked = 0
    while ((getline line < file) > 0) {
      number++
      if (is_marked && line ~ /^(pub(\(.*\))? )?mod .*\{$/) { close(file); return number }
      is_marked = line ~ /^#\[cfg\(test\)\]$/ || (is_marked && line ~ /^#\[/)
    }
    close(file)
    return number + 1
  }
  $1 == "SF" {
    is_ours = index($2, root) == 1
    if (!is_ours) next
    name = substr($2, length(root) + 1)
    room = name; sub(/[\/.].*/, "", room)
    is_ours = index(" " rooms " ", " " room " ") > 0
    if (is_ours) end = tests_from($2)
  }
  $1 == "DA" && is_ours && $2 < end {
    lines[room]++
    if ($3 > 0) run[room]++
    else { of_file[name]++; print "src/" name ":" $2 > missed }
  }
  function say(name, run, lines,   share) {
    share = lines ? 100 * run / lines : 0
    printf "coverage: %-7s %6d of %6d lines, %.1f %%\n", name, run, lines, share
    share >= wanted ? passed++ : failed++
  }
  END {
    count = split(rooms, names, " ")
    for (i = 1; i <= count; i++) {
      say(names[i], run[names[i]], lines[names[i]])
      all += lines[names[i]]; all_run += run[names[i]]
    }
    say("all", all_run, all)
    for (name in of_file) printf "%d src/%s\n", of_file[name], name | "sort -rn | head -n 15 | sed \"s/^/coverage: not run: /\""
    close("sort -rn | head -n 15 | sed \"s/^/coverage: not run: /\"")
    printf "%d passed, %d failed, 0 skipped\n", passed, failed
    exit failed > 0
  }' "$work/lines"
