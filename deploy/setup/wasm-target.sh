#!/bin/sh
# Provides a Rust compiler for wasm32-wasip2 and prints its path.
# usage: wasm-target.sh STATE
set -eu
state=$1
target=wasm32-wasip2

has_target() { [ -d "$(rustc --print target-libdir --target $target 2>/dev/null)" ]; }

if has_target; then
    command -v rustc
    exit 0
fi
# rustup downloads the target, unless automatic installation is disabled.
if command -v rustup >/dev/null && [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ]; then
    echo "setup: rustup target add $target" >&2
    if rustup target add $target >&2 && has_target; then
        command -v rustc
        exit 0
    fi
fi
toolchain=$state/wasm-toolchain
if [ ! -e "$toolchain/.complete" ]; then
    . /etc/os-release 2>/dev/null || ID=unknown
    if [ "$ID-${VERSION_ID:-}" != debian-12 ]; then
        echo "setup: the Rust target $target is missing; install it, for example: rustup target add $target" >&2
        exit 1
    fi
    echo "setup: creating a Rust toolchain for $target from Debian packages in $toolchain (about a minute, 600 MB)" >&2
    if ! apt-cache show rustc-web >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ]; then apt-get update -qq >&2; else sudo -n apt-get update -qq >&2; fi || {
            echo "setup: the package lists of apt are missing; run: apt-get update" >&2
            exit 1
        }
    fi
    "$(dirname "$0")/rust-wasm-fallback.sh" "$toolchain" >&2
fi
echo "$toolchain/rustc"
