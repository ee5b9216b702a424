#!/bin/sh
# deps.sh PACKAGE...: see to it that what these Debian packages bring is there. Installs them when it may (root and
# apt-get); else says what is left out for want of them. In CI (CI=true) nothing may be left out.
set -eu

# there PACKAGE: is what we use of it there, whoever installed it?
there() {
  case $1 in
    mosquitto) command -v mosquitto ;;
    mosquitto-clients) command -v mosquitto_pub && command -v mosquitto_sub ;;
    e2fsprogs) command -v mkfs.ext4 ;;
    gcc) command -v gcc ;;
    libc6-dev) [ ! -e /etc/debian_version ] || [ -e /usr/include/stdlib.h ] ;;
    qemu-user-static) command -v qemu-arm-static && command -v qemu-aarch64-static ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

# loss PACKAGE: what cannot be done without it.
loss() {
  case $1 in
    mosquitto | mosquitto-clients) echo "the tests against Debian's own broker" ;;
    jq | curl) echo "the walk through docs/try-it.md" ;;
    e2fsprogs) echo "the tests on a disk that is full, read-only or loses its power" ;;
    gcc | libc6-dev) echo "the race detector" ;;
    qemu-user-static) echo "starting the ARM binaries" ;;
    *) echo "what needs $1" ;;
  esac
}

missing=
for p in "$@"; do there "$p" || missing="$missing $p"; done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  echo "installing:$missing"
  for try in 1 2; do
    # shellcheck disable=SC2086
    if apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing >/dev/null; then break; fi
    [ $try = 2 ] || { echo "apt-get failed, once more"; sleep 5; }
  done
fi

left=
for p in "$@"; do
  there "$p" && continue
  left=1
  echo "left out: $(loss "$p"); it needs the Debian package $p" >&2
done
if [ -n "$left" ] && [ "${CI:-}" = true ]; then
  echo "in CI nothing may be left out" >&2
  exit 1
fi
