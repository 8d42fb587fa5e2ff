# What one does with this repository. Everything behind it is plain cargo; make only brings the tools first.

CARGO ?= cargo
SETUP := tests/support/setup

.DEFAULT_GOAL := help
# How long `make chaos` goes on, in seconds.
TIME ?= 3600
# How its events reach the bridge: http or queue.
MODE ?= http
# How many servers each bus has: single or cluster (three).
BUS ?= single

# Which scenarios `make clusters` plays: short or full.
FORM ?= short

# How many disk states `make crash-states` tries, and in how many runs a call fails (all: each call in turn). Without STATES it
# goes on for TIME seconds.
STATES ?=
FAULTS ?= 40

.PHONY: help demo test crash-states clusters chaos bench tools clean-tools

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

clusters: ## fail servers and the network of clusters of three, one scenario after the other (FORM=full: 20 minutes)
	@$(SETUP) build kafka nats toxiproxy
	CLUSTERS_FORM=$(FORM) $(CARGO) test --test clusters

chaos: ## break brokers, disk and bridge at random for an hour, count what was lost (TIME=120, MODE=queue, BUS=cluster)
	@$(SETUP) build kafka nats
	CHAOS_MODE=$(MODE) CHAOS_BUS=$(BUS) CHAOS_SECONDS=$(TIME) $(CARGO) test --test chaos

bench: ## run the benchmarks
	@$(SETUP) build kafka nats
	$(CARGO) bench --bench normalize --bench routes
	$(CARGO) bench --bench end_to_end
	$(CARGO) bench --bench spool
	$(CARGO) bench --bench queue

tools: ## install whatever any of these needs
	@$(SETUP) build kafka nats toxiproxy kcat promtool judges mns hadolint chart kubernetes

clean-tools: ## remove what was installed into .tools
	rm -rf .tools
