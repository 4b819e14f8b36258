#!/bin/sh
# Finds the programs that some tests need beside Python and Node.js. Root on Debian or Ubuntu gets what is missing; for
# anybody else, and where a package cannot be had, the tests that need it are skipped, and say so.
set -eu
PATH=$PATH:/usr/sbin:/usr/local/sbin

one_of() {
    for program; do
        if command -v "$program" >/dev/null; then return 0; fi
    done
    return 1
}

missing=
for program in curl openssl nginx caddy; do
    one_of $program || missing="$missing $program"
done
one_of systemd-analyze || missing="$missing systemd"
one_of chromium chromium-browser google-chrome google-chrome-stable || missing="$missing chromium"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! one_of apt-get; then
    echo "test: tests that need these are skipped:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null 2>&1 || true
for package in $missing; do
    echo "test: fetching $package"
    apt-get install -qq -y --no-install-recommends $package >/dev/null 2>&1 \
        || { echo "test: $package cannot be had, so tests that need it are skipped" >&2; continue; }
    case $package in
    nginx | caddy) # the packages start a web server where systemd runs: nobody asked for that
        [ ! -d /run/systemd/system ] || systemctl disable --quiet --now $package || true ;;
    esac
done
