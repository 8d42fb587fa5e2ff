# What one does with this repository. Everything behind it is plain cargo; make only brings the tools first.

CARGO ?= cargo
SETUP := tests/support/setup

.DEFAULT_GOAL := help
# How long `make chaos` goes on, in seconds.
TIME ?= 3600
# How its events reach the bridge: http or queue.
MODE ?= http

# How many disk states `make crash-states` tries, and in how many runs a call fails (all: each call in turn). Without STATES it
# goes on for TIME seconds.
STATES ?=
FAULTS ?= 40

.PHONY: help demo test crash-states chaos bench tools clean-tools

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## show the bridge at work, with an embedded Kafka and sample callbacks
	@$(SETUP) build
	$(CARGO) run -- demo

test: ## run all tests, against a real Kafka and NATS
	@$(SETUP) build kafka nats kcat promtool judges mns hadolint chart kubernetes
	$(CARGO) test

crash-states: ## cut the power at random for an hour, in a simulation, and look what the spool lost (STATES=500: so many)
	@$(SETUP) build
	CRASH_FAULTS=$(FAULTS) $(if $(STATES),CRASH_STATES=$(STATES),CRASH_SECONDS=$(TIME)) $(CARGO) test --test crash

chaos: ## kill brokers and bridge at random for an hour (TIME=120: two minutes; MODE=queue: by MNS); count what was lost
	@$(SETUP) build kafka nats
	CHAOS_MODE=$(MODE) CHAOS_SECONDS=$(TIME) $(CARGO) test --test chaos

bench: ## run the benchmarks
	@$(SETUP) build kafka nats
	$(CARGO) bench --bench normalize --bench routes
	$(CARGO) bench --bench end_to_end
	$(CARGO) bench --bench spool
	$(CARGO) bench --bench queue

tools: ## install whatever any of these needs
	@$(SETUP) build kafka nats kcat promtool judges mns hadolint chart kubernetes

clean-tools: ## remove what was installed into .tools
	rm -rf .tools
