# Targets install missing tools first (a Redis server, the Wasm target) and print
# what they install. Every target can be repeated.
STATE := $(CURDIR)/.gateway-worker
# The Redis of the benchmarks persists to disk, as in production.
BENCH_MESSAGES ?= 100000
PART ?=
# An empty SEED chooses a new seed for each run.
SECONDS ?= 600
SEED ?=

.PHONY: help setup tools plugins demo test chaos lint build bench bench-queue bench-plugins bench-reload clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: tools ## install missing tools: a Redis server, Valkey for the tests, a compiler for handlers
	@deploy/setup/valkey.sh $(STATE)
	@deploy/setup/c-guests.sh

tools:
	@mkdir -p $(STATE)
	@deploy/setup/redis.sh $(STATE)
	@deploy/setup/wasm-target.sh $(STATE) >/dev/null

plugins: tools ## build the handlers into target/plugins
	@deploy/setup/plugins.sh $(STATE)

demo: plugins ## run a worker with a private Redis and sample messages
	cargo build --locked -p gateway-worker
	target/debug/gateway-worker dev --plugins target/plugins

test: setup plugins ## run all tests
	cargo test --locked -p gateway-worker
	cargo test --locked -p gateway-plugin-sdk --all-features

chaos: plugins ## run the fault-injection test; SECONDS=600, SEED=random, SENTINEL=1 for failovers
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) cargo test --locked -p gateway-worker --test it -- \
		--exact chaos::$(if $(SENTINEL),nothing_is_lost_where_masters_die_and_hand_over,nothing_is_lost_whatever_happens_with_another_seed_each_time) --nocapture

lint: ## check format, clippy and docs
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

build: plugins ## build the release binary and the handlers
	cargo build --locked --release -p gateway-worker

bench: plugins ## measure throughput, CPU and latency, compared with bare primitives
	cargo bench --locked -p gateway-worker --bench drain -- $(BENCH_MESSAGES)

bench-queue: plugins ## measure the cost of the queue's options and guarantees
	cargo bench --locked -p gateway-worker --bench queue -- $(BENCH_MESSAGES)

bench-plugins: plugins ## measure the cost of the sandbox; PART=instances, threads, limits or live
	cargo bench --locked -p gateway-worker --bench plugins -- $(PART)

bench-reload: ## measure time and memory of a thousand reloads
	cargo bench --locked -p gateway-worker --bench reload

clean: ## delete build results, but not .gateway-worker
	cargo clean
