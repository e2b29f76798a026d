# What needs setting up (a Redis server, the Wasm target) is set up first, and
# told; everything may be run again.
STATE := $(CURDIR)/.gateway-worker
# Redis persists to disk in the benchmark as it would in production.
BENCH_MESSAGES ?= 100000
PART ?=
# A seed of its own each time, unless one is given.
SECONDS ?= 600
SEED ?=

.PHONY: help setup tools plugins demo test chaos lint build bench bench-queue bench-plugins bench-reload clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: tools ## what is missing: a Redis server, Valkey for the tests, a compiler for handlers
	@deploy/setup/valkey.sh $(STATE)
	@deploy/setup/c-guests.sh

tools:
	@mkdir -p $(STATE)
	@deploy/setup/redis.sh $(STATE)
	@deploy/setup/wasm-target.sh $(STATE) >/dev/null

plugins: tools ## the handlers, into target/plugins
	@deploy/setup/plugins.sh $(STATE)

demo: plugins ## a worker with a Redis of its own, sample messages, and their handling
	cargo build --locked -p gateway-worker
	target/debug/gateway-worker dev --plugins target/plugins

test: setup plugins ## every test
	cargo test --locked -p gateway-worker
	cargo test --locked -p gateway-plugin-sdk --all-features

chaos: plugins ## nothing is lost whatever happens, for SECONDS=600, SEED=any, SENTINEL=1
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) cargo test --locked -p gateway-worker --test it -- \
		--exact chaos::$(if $(SENTINEL),nothing_is_lost_where_masters_die_and_hand_over,nothing_is_lost_whatever_happens_with_another_seed_each_time) --nocapture

lint: ## format, clippy, docs
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

build: plugins ## the release binary, and the handlers
	cargo build --locked --release -p gateway-worker

bench: plugins ## messages a second, CPU and latency, beside bare primitives
	cargo bench --locked -p gateway-worker --bench drain -- $(BENCH_MESSAGES)

bench-queue: plugins ## what the queue's options and promises cost
	cargo bench --locked -p gateway-worker --bench queue -- $(BENCH_MESSAGES)

bench-plugins: plugins ## what a sandbox costs; PART=instances, threads, limits or live of it
	cargo bench --locked -p gateway-worker --bench plugins -- $(PART)

bench-reload: ## what a thousand reloads cost and leave behind
	cargo bench --locked -p gateway-worker --bench reload

clean: ## what was built; the state folder stays
	cargo clean
