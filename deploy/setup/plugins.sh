#!/bin/sh
# Builds the handlers, with their manifests and samples, into target/plugins, and
# the guests of tests and benchmarks into target/test-guests.
# usage: plugins.sh STATE
set -eu
state=$1
here=$(dirname "$0")
rustc=$("$here/wasm-target.sh" "$state")

# The compiler may differ from the host's, so it has its own target directory.
# Without --locked, because the lock file does not contain a new handler yet.
packages=$(for dir in plugins/*/ tests/guests/*/; do printf -- '-p %s ' "$(basename "$dir")"; done)
# Builds are reproducible in any directory.
RUSTFLAGS="--remap-path-prefix=$(pwd)=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo ${RUSTFLAGS:-}" \
    RUSTC=$rustc CARGO_TARGET_DIR=target/guests cargo build --profile plugin --target wasm32-wasip2 $packages

built=target/guests/wasm32-wasip2/plugin
# Renames the file, so that a running worker never reads a partial one.
put() { [ -f "$2" ] && cmp -s "$1" "$2" || { cp "$1" "$(dirname "$2")/.new" && mv "$(dirname "$2")/.new" "$2"; }; }
wasm() { echo "$built/$(basename "$1" | tr - _).wasm"; }
mkdir -p target/plugins target/test-guests
for dir in plugins/*/; do
    for manifest in "$dir"*.*.toml; do
        topic=$(basename "$manifest" .toml)
        put "$manifest" "target/plugins/$topic.toml"
        sample=$topic.sample.json
        [ ! -f "$dir$sample" ] || put "$dir$sample" "target/plugins/$sample"
        put "$(wasm "$dir")" "target/plugins/$topic.wasm"
    done
done
for dir in tests/guests/*/; do
    put "$(wasm "$dir")" "target/test-guests/$(basename "$dir").wasm"
done
