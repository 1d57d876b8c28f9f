# make          builds the shim and the command `cedana`
# make install  puts them below PREFIX (/usr/local), with completions and ready files; make uninstall takes them away
# make demo     a container counts, is saved, killed, brought back, and counts on
# make test     every test: rules and parsers without root, the rest on real engines in the testbed
# make bench    our shim against containerd's own, as a table and as target/bench.json
# make fuzz     every parser of foreign input is fed for a while: SECONDS=10 each
# make check    formatting, lints, unit tests: no root, no engines

CARGO ?= cargo
SUITES ?=
BENCH ?=
PREFIX ?= /usr/local
DESTDIR ?=
BINARIES := $(or $(CARGO_TARGET_DIR),target)/release
export PREFIX DESTDIR
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: build demo test check bench fuzz install uninstall protoc
build: protoc
	$(CARGO) build --release

# containerd's API is compiled from its own definitions.
protoc:
	@if ! command -v $(or $(PROTOC),protoc) >/dev/null; then \
	    if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing protobuf-compiler by apt: the build needs protoc"; \
	        export DEBIAN_FRONTEND=noninteractive; \
	        apt-get install -qq --yes --no-install-recommends protobuf-compiler >/dev/null 2>&1 \
	        || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends protobuf-compiler >/dev/null; }; \
	    else \
	        echo "protoc not found: install it (Debian, Ubuntu: apt install protobuf-compiler; Fedora: protobuf-compiler;" \
	            "Arch: protobuf) and run this again" >&2; exit 1; \
	    fi; \
	fi

# By sudo there is often no cargo; then what is built is installed as it is.
install:
	@if command -v $(CARGO) >/dev/null; then $(MAKE) --no-print-directory build; fi
	@config/install $(BINARIES)

uninstall:
	@config/install --remove

demo: build
	@echo "building the demo and the testbed (silent, a minute or two the first time)"
	@$(CARGO) build --quiet --package integration --bins
	@integration/testbed -- target/debug/demo

check: protoc
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path integration/fuzz/Cargo.toml --check
	$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	$(CARGO) test --quiet -- --test-threads=1    # some look at descriptors and children of the whole process
	$(CARGO) test --quiet --package integration --lib --bins

test: check build
	integration/run-suites $(SUITES)

bench: build
	@$(CARGO) build --quiet --package integration --bins
	integration/testbed -- target/debug/bench $(BENCH)

# Its build takes minutes, so `make test` only tries what is in integration/fuzz/inputs, in the unit tests.
fuzz: protoc
	SECONDS_EACH=$(or $(SECONDS),10) integration/fuzz/run
