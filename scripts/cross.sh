#!/bin/sh
# cross.sh: static, stripped binaries for every board we run on, in dist/, with their sizes.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go} VERSION=${VERSION:-dev}
limit=$((14 * 1024 * 1024)) # bytes; the armv6 binary must fit old cards and slow links

export CGO_ENABLED=0 GOOS=linux
for board in arm:6:armv6 arm:7:armv7 arm64::arm64 amd64::amd64; do
  IFS=: read -r arch arm name <<END
$board
END
  bin=dist/gatepost-linux-$name
  GOARCH=$arch GOARM=$arm $GO build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o "$bin" ./cmd/gatepost
  size=$(wc -c <"$bin")
  echo "$bin $size" | awk '{ printf "%-28s %5.1f MiB\n", $1, $2 / 1048576 }'
  if [ "$name" = armv6 ] && [ "$size" -gt $limit ]; then
    echo "the armv6 binary is over its limit of 14 MiB" >&2
    exit 1
  fi
done
