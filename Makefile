# The commands of the project. Each target has one meaning; `make help` prints the text behind `##`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A fresh Rust is not on the path of a shell that was opened before.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Size of the pool that the first `make run` creates; empty: the program decides.
POOL_SIZE ?=

# Options of the command `bench`; see `rok-blk bench --help`.
BENCH ?=

.PHONY: help run test fuzz coverage mutants bench compare hostile kernel kernel-long torture power-cut uninstall-data

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

run: ## Install what is missing, build, and serve an encrypted volume over NBD until Ctrl-C (POOL_SIZE=8GiB)
	@deploy/install-deps.sh build try
	@cargo build --bin rok-blk
	@exec cargo run --quiet --bin rok-blk -- quickstart $(if $(POOL_SIZE),--pool-size '$(POOL_SIZE)')

test: ## Install what is missing, build, and run every test that needs no kernel of its own
	@deploy/install-deps.sh build test
	@.ci/count-tests tests/run.sh

fuzz: ## Feed NBD, the formats on disk, references and API requests with mutated input, 5 s each target (FUZZ_SECONDS=600)
	@deploy/install-deps.sh build ci
	@tests/fuzz.sh

coverage: ## Print which share of the lines of pool, volume, format and crypto the library's tests and the simulation run (nine minutes)
	@deploy/install-deps.sh build test
	@tests/coverage.sh

mutants: ## Change pool, volume, format and crypto in small ways and find out whether a test fails, from where it ended last (MINUTES=60)
	@deploy/install-deps.sh build test
	@ROK_MUTANT_MINUTES=$(or $(MINUTES),60) exec tests/mutants.sh

bench: ## Measure the engine beside a raw io_uring loop (twenty minutes and 12 GiB; BENCH='--group targets' takes ten)
	@deploy/install-deps.sh build
	@cargo build --bin rok-blk
	@exec cargo run --quiet --bin rok-blk -- bench --plot target/bench.svg $(BENCH)

compare: ## Run the fio profiles and nbdcopy against ours, qemu-nbd and nbdkit, side by side (ROUNDS=3 RUNTIME=3 VOLUME_MIB=512)
	@deploy/install-deps.sh build test
	@cargo build --bin rok-blk
	@exec benches/compare/compare.py

hostile: ## Measure what hostile and flooding NBD clients cost an honest one (ROUNDS=3 RUNTIME=3)
	@deploy/install-deps.sh build test
	@cargo build --bin rok-blk
	@exec benches/compare/hostile.py

kernel: ## Test against a real kernel with ublk and nbd drivers, in an emulated machine
	@deploy/install-deps.sh build test
	@exec tests/kernel/run.sh

kernel-long: ## The same with a hundred kills of the daemon under load, twenty restarts, and a minute without memory (an hour; ROK_KILLS=100)
	@deploy/install-deps.sh build test
	@exec tests/kernel/run.sh --long

torture: ## Run the long modes of simulation, crash states, flips, kills and fuzzing in turns, from where they ended last (HOURS=1)
	@deploy/install-deps.sh build test ci
	@exec tests/torture.sh $(or $(HOURS),1)

power-cut: ## Cut the power under a pool at a hundred and twenty points of a recording of its disks (ROK_POWER_CUTS=120)
	@deploy/install-deps.sh build test
	@exec tests/kernel/run.sh --power

uninstall-data: ## Delete the pool that `make run` created, after asking
	@exec deploy/uninstall-data.sh
