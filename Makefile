# "make help" lists the targets. Go and make are enough for "make demo" and "make test".

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TOOL     = $(GO) tool -modfile=tools/go.mod

# Debian keeps mosquitto and mkfs.ext4 where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin
export GO VERSION
# No C anywhere but in the race detector.
export CGO_ENABLED = 0

.PHONY: build help demo test check lint race fuzz bench cross emulate torture clean

build: ## build bin/gatepost for this machine
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/gatepost ./cmd/gatepost

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the tour: broker, terminals and agent in one process, nothing to install
	$(GO) run ./cmd/gatepost demo

test: ## all tests, once; installs the Debian packages it needs when it may
	@scripts/deps.sh mosquitto mosquitto-clients e2fsprogs jq curl
	$(GO) test -timeout 10m ./...

check: lint race fuzz cross emulate ## what must be green before a change is handed in

lint: ## gofmt, vet, staticcheck, errcheck, go mod tidy -diff
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w is needed on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags torture ./...
	$(TOOL) staticcheck -tags torture ./...
	$(TOOL) errcheck -ignoretests -tags torture -exclude tools/errcheck.txt ./...
	$(GO) mod tidy -diff

race: ## all tests under the race detector (needs a C compiler)
	@scripts/deps.sh gcc libc6-dev mosquitto mosquitto-clients e2fsprogs jq curl
	@if command -v gcc >/dev/null; then set -x; CGO_ENABLED=1 $(GO) test -race -timeout 15m ./...; fi

fuzz: ## each fuzz target for FUZZTIME (5s)
	@scripts/fuzz.sh

bench: ## every row of docs/benchmarks.md against its floor, medians of COUNT (5) runs
	@scripts/deps.sh mosquitto mosquitto-clients e2fsprogs
	@scripts/bench.sh

cross: ## static binaries for armv6, armv7, arm64 and amd64 in dist/, with sizes
	@scripts/cross.sh

emulate: cross ## start the armv6 and arm64 binaries under qemu-user
	@scripts/deps.sh qemu-user-static
	@scripts/emulate.sh

torture: ## 500 kills and 40 power cuts, an hour or more; the power cuts need root
	@scripts/deps.sh mosquitto mosquitto-clients e2fsprogs
	$(GO) test -count=1 -timeout 6h -v -run '^TestKill$$' ./cmd/gatepost -kills 500
	@if [ "$$(id -u)" = 0 ]; then set -x; $(GO) test -tags torture -count=1 -timeout 6h -v -run PowerCut ./...; \
	else echo "left out: the power cuts (mounting a loop device needs root)"; fi

clean: ## remove bin/ and dist/
	rm -rf bin dist
