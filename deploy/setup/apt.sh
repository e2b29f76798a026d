#!/bin/sh
# Installs Debian packages. Exits with 1 where that is not possible; the caller
# prints instructions then. usage: apt.sh PACKAGE...
set -eu
command -v apt-get >/dev/null || exit 1
if [ "$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root=sudo; else exit 1; fi
echo "setup: apt-get install $*" >&2
$root apt-get update -qq >&2
DEBIAN_FRONTEND=noninteractive $root apt-get install -qq -y --no-install-recommends "$@" >&2
