# make          builds the shim
# make demo     a container counts, is saved, killed, brought back, and counts on
# make test     every test: rules and parsers without root, the rest on real engines in the testbed
# make bench    our shim against containerd's own, as a table and as target/bench.json
# make check    formatting, lints, unit tests: no root, no engines

CARGO ?= cargo
SUITES ?=
BENCH ?=
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: build demo test check bench
build:
	$(CARGO) build --release

demo: build
	@echo "building the demo and the testbed (silent, a minute or two the first time)"
	@$(CARGO) build --quiet --package integration --bins
	@integration/testbed -- target/debug/demo

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	$(CARGO) test --quiet -- --test-threads=1    # some look at descriptors and children of the whole process
	$(CARGO) test --quiet --package integration --lib --bins

test: check build
	integration/run-suites $(SUITES)

bench: build
	@$(CARGO) build --quiet --package integration --bins
	integration/testbed -- target/debug/bench $(BENCH)
