#!/bin/sh
# Provides a Redis or Valkey server: from PATH, installed by apt-get, or unpacked
# into the state directory. usage: redis.sh STATE
set -eu
state=$1

if command -v redis-server >/dev/null || command -v valkey-server >/dev/null || [ -x "$state/redis/redis-server" ]; then
    exit 0
fi
cannot() {
    echo "setup: no redis-server or valkey-server on PATH; install one, for example: $1" >&2
    exit 1
}
command -v apt-get >/dev/null || cannot "dnf install redis / apk add redis / brew install redis"

# Its service does not have to start, because dev and tests start their own server.
if "$(dirname "$0")/apt.sh" redis-server; then
    exit 0
fi

echo "setup: unpacking redis-server into $state/redis" >&2
work=$state/redis.tmp
rm -rf "$work"
mkdir -p "$work/files"
(
    cd "$work"
    packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances redis-server | grep -E '^(redis-tools|redis-server|liblzf|libjemalloc|liblua|libatomic|libhiredis)' | sort -u)
    apt-get download -qq $packages >&2
    for package in *.deb; do dpkg -x "$package" files && rm "$package"; done
) || cannot "apt-get update && apt-get install redis-server"
cat > "$work/redis-server" <<'SH'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/files/usr
LD_LIBRARY_PATH=$(ls -d "$here"/lib/*-linux-gnu | head -1) exec "$here/bin/redis-server" "$@"
SH
chmod +x "$work/redis-server"
"$work/redis-server" --version >/dev/null || cannot "apt-get install redis-server"
mv "$work" "$state/redis"
