# The tasks of this repository. Each one installs what it needs and then runs plain cargo.

CARGO ?= cargo
SETUP := tests/support/setup
DENY := .tools/bin/cargo-deny --locked

.DEFAULT_GOAL := help
# `make image`: pull, or nothing to make the base image where buildah has none.
BASE ?=

# How many seconds `make chaos` and `make crash-states` run.
TIME ?= 3600
# The input of `make chaos`: http or queue.
MODE ?= http
# How many servers each bus has in `make chaos`: single (one) or cluster (three).
BUS ?= single

# Which scenarios `make clusters` runs: short or full.
FORM ?= short

# `make fuzz`: which targets, and for how many inputs or seconds each. Without both it tries as many inputs as the gate.
TARGET ?= normalizer signature mns config spool_record http_front
RUNS ?=
SECONDS ?=

# `make crash-states`: how many disk states it tries, and in how many runs a call fails (all: each call in turn). Without
# STATES it runs for TIME seconds.
STATES ?=
FAULTS ?= 40

# `make page`: the file for the picture of the README. Without it no picture is kept.
SCREENSHOT ?=

BENCH := BENCH_ROWS=$(CURDIR)/target/bench-rows $(CARGO) bench

# What needs root says so before it builds anything.
AS_ROOT = @test "$$(id -u)" = 0 || { echo "\`make $@\` needs root: it makes namespaces and control groups" >&2; exit 1; }

.PHONY: help generate demo check lint test release reproducible advisories image node test-node examples page \
	crash-states clusters chaos fuzz bench tools clean-tools

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## show the bridge at work, with an embedded Kafka and sample callbacks
	@$(SETUP) build
	$(CARGO) run -- demo

check: lint ## run format, lints and unit tests, without a broker: for use while you work
	$(CARGO) test --quiet --locked --lib --bins

# The long tests have a command of their own: `--all-targets` leaves out targets with `test = false`, and ignores their names.
lint: ## check the format, the lints, and the dependencies (deny.toml)
	@$(SETUP) build deny
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --quiet --locked --all-targets -- -D warnings
	$(CARGO) clippy --quiet --locked --test chaos --test clusters --test crash --test examples --test page --test node \
		-- -D warnings
	$(DENY) check -D warnings bans licenses sources
	$(DENY) --features vendored check -D warnings licenses

advisories: ## check the dependencies for known vulnerabilities; it fetches the database of RustSec
	@$(SETUP) deny
	$(DENY) --features vendored check -D warnings advisories

generate: ## write the files that are derived from the code and from the values of the chart
	@$(SETUP) build chart kubernetes
	GENERATE=1 $(CARGO) test --quiet --locked --test it --test chart -- generated

test: ## run all tests, against a real Kafka and NATS
	@$(SETUP) build kafka nats kcat promtool judges mns hadolint chart kubernetes
	$(CARGO) test

release: ## build the files of a release, with OpenSSL linked statically, into target/release-files
	@$(SETUP) release
	packaging/release

reproducible: ## build a release twice at the same path and compare the bytes
	@$(SETUP) release
	packaging/reproducible

image: ## build the image with docker or, as root, with buildah, into target/image (BASE=pull: pull its base image)
	@$(SETUP) image
	BASE=$(BASE) packaging/image

node: ## start a Kubernetes node with the image, until Ctrl-C; needs root
	$(AS_ROOT)
	@$(SETUP) build kubernetes node image
	packaging/image
	NODE_MODE=stay $(CARGO) test --quiet --locked --test node

test-node: ## run the image, and the life of a release of the chart, on a Kubernetes node; needs root
	$(AS_ROOT)
	@$(SETUP) build kafka kubernetes node image
	packaging/image
	$(CARGO) test --locked --test node

examples: ## run the consumers of examples/consumers against a real Kafka and NATS
	@$(SETUP) build kafka nats examples
	$(CARGO) test --test examples

# One test after the other, because they measure times.
page: ## test the page in a real Chromium (SCREENSHOT=docs/page.png: make the picture of the README)
	@$(SETUP) build nats page
	PAGE_SCREENSHOT=$(SCREENSHOT) $(CARGO) test --test page -- --test-threads=1 --nocapture

crash-states: ## simulate power failures for an hour and check what the spool lost (STATES=500: this many states)
	@$(SETUP) build
	CRASH_FAULTS=$(FAULTS) $(if $(STATES),CRASH_STATES=$(STATES),CRASH_SECONDS=$(TIME)) $(CARGO) test --test crash

clusters: ## test failures of servers and network in clusters of three, one after the other (FORM=full: 20 minutes)
	@$(SETUP) build kafka nats toxiproxy
	CLUSTERS_FORM=$(FORM) $(CARGO) test --test clusters

chaos: ## break brokers, disk and bridge at random for an hour and count losses (TIME=120, MODE=queue, BUS=cluster)
	@$(SETUP) build kafka nats
	CHAOS_MODE=$(MODE) CHAOS_BUS=$(BUS) CHAOS_SECONDS=$(TIME) $(CARGO) test --test chaos

fuzz: ## run the fuzz targets with a fixed seed (TARGET=mns, RUNS=1000000 or SECONDS=60)
	@$(SETUP) build fuzz
	@set -e; for target in $(TARGET); do \
		echo "--- $$target"; fuzz/run $$target $(if $(RUNS),-runs=$(RUNS)) $(if $(SECONDS),-max_total_time=$(SECONDS)); \
	done

bench: ## measure, and print one table with the goals: see docs/benchmarks.md
	@$(SETUP) build kafka nats baseline
	$(CARGO) bench --no-run
	rm -f target/bench-rows
	$(BENCH) --bench normalize --bench routes
	$(BENCH) --bench end_to_end
	BENCH_ROUNDS=28 BENCH_SECONDS=3 $(BENCH) --bench end_to_end -- watched
	BENCH_BASELINE=$(CURDIR)/.tools/baseline/apsara-bridge BENCH_WARMUP=20 $(BENCH) --bench queue
	@$(BENCH) --quiet --bench table

tools: ## install everything that any target needs
	@$(SETUP) build deny release kafka nats toxiproxy kcat promtool judges mns examples hadolint chart kubernetes node \
		image fuzz baseline page

clean-tools: ## remove everything that was installed into .tools
	rm -rf .tools
