#!/bin/sh
# Builds the C guests of the tests for WASI preview 1 into target/test-guests, and
# installs a compiler if none supports the target. usage: c-guests.sh
set -eu
here=$(dirname "$0")
mkdir -p target/test-guests

build() {
    for source in tests/guests/*.c; do
        name=$(basename "$source" .c)
        clang --target=wasm32-wasi -Os -Wall -Werror -o "target/test-guests/$name.wasm" "$source" || return 1
    done
}

can_build() { command -v clang >/dev/null && echo 'int main(void) { return 0; }' | clang --target=wasm32-wasi -xc -o /dev/null - 2>/dev/null; }

if ! can_build; then
    packages="clang lld wasi-libc libclang-rt-dev-wasm32"
    "$here/apt.sh" $packages && can_build || {
        echo "setup: no clang supports wasm32-wasi; install one with wasm-ld and wasi-libc, for example: apt-get install $packages" >&2
        exit 1
    }
fi
build
