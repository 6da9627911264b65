#!/bin/sh
# Install what some tests need and PyPI does not have: where we are root on Debian with apt, otherwise take what is on
# the PATH and name what is skipped. In CI a missing server is a failure.
set -eu

missing=""
add() { missing="$missing $1"; }
command -v nghttpd >/dev/null 2>&1 || add nghttp2-server
command -v chromium >/dev/null 2>&1 || add chromium
command -v redis-server >/dev/null 2>&1 || add redis-server
[ -n "$(ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-* 2>/dev/null || true)" ] || add rabbitmq-server

# Of Prometheus only the one program that checks rules: the package would bring a server as well.
command -v promtool >/dev/null 2>&1 || add promtool

[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing test servers:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # A package must not start its service: tests run servers of their own, on ports of their own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    case "$missing" in
    *promtool*)
        missing=$(echo "$missing" | sed 's/promtool//')
        folder=$(mktemp -d)
        chmod 755 "$folder"
        (cd "$folder" && apt-get -o APT::Sandbox::User=root download -qq prometheus && dpkg-deb -x prometheus_*.deb unpacked)
        install -m 755 "$folder/unpacked/usr/bin/promtool" /usr/local/bin/promtool
        rm -rf "$folder"
        ;;
    esac
    # shellcheck disable=SC2086
    [ -z "$(echo $missing)" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi

echo "not root on Debian, so tests that need these are skipped:$missing" >&2
if [ "${CI:-}" = true ]; then
    echo "in CI a missing server is a failure" >&2
    exit 1
fi
