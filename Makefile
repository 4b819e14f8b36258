# Everything a developer does, by name. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := tests/clients

INSTALLED := $(VENV)/.installed
NODE_INSTALLED := $(CLIENTS)/node_modules/.installed
PROGRAMS_SOUGHT := $(VENV)/.programs
# Finds Node.js from the wheel if the machine has no suitable one (tests/programs.sh).
WITH_NODE := PATH="$(CURDIR)/$(BIN):$$PATH"
# One resolution for all platforms and Python versions that pyproject.toml allows.
LOCK = .lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --upgrade --no-annotate --no-header --quiet

# One file in each process, in the order of `testpaths`: those that wait for seconds come first, so that no long file runs last.
BY_FILE = --dist loadfile --no-loadscope-reorder
PARALLEL = -n 4 $(BY_FILE)

# Tests of servers and clients wait most of the time: five of their files use little more than one core. The others compute, and
# use what is left: they have a lower priority, so that no server waits for them, and ports of their own (tests/support/process.py).
WAITING = tests/cluster tests/clients tests/docs
BUSY = tests/contract tests/unit
RUN_WAITING = $(BIN)/python -m pytest -n 5 $(BY_FILE) $(WAITING)
RUN_BUSY = TESTS_PORT_PART=6 nice -n 5 $(BIN)/python -m pytest -n 2 $(BY_FILE) --timeout 180 -o cache_dir=.pytest_cache/busy $(BUSY)

# A test that failed beside others runs again, alone: on a busy machine, its server or its client may not get a core in time. If it
# fails again, `make test` fails. Both runs are in the output, so a test that often needs the second run is easy to find.
AGAIN = --last-failed --last-failed-no-failures none
RUN_AGAIN = test: the tests that failed run again, one after another

# Six tests at a time, whatever their file, since the long tests of one file take a quarter of an hour one after another.
PARALLEL_LONG = -n 6 --dist worksteal
# Only the files that name the mark are collected, because each of the six processes would need half a minute to collect all
# tests. In this order, the longest tests begin early.
LONG = $$(grep -rl --include='test_*.py' 'mark\.long' tests | sort -r)
RUN_LONG = $(BIN)/python -m pytest --timeout 1800 --durations 0 --durations-min 10
# A test marked `alone` runs after the others, by itself, because its clients alone need all cores. Beside other tests it would
# measure which process gets a core: its clients give up handshakes that take longer than some seconds, and begin again.
# Exit code 5: `ARGS` has no such tests.

# The tests start thousands of processes. Without the bytecode files of its modules, each process compiles the whole package.
unexport PYTHONDONTWRITEBYTECODE

# How long each model of `make model` runs.
SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help install serve test test-waiting test-busy test-ready test-long test-broker coverage model model-cluster check bench bench-cluster bench-history bench-sse bench-fairness format lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-20s %s\n' "$$name" "$$what"; done

install: $(INSTALLED) ## prepare .venv with the exact versions of requirements-dev.lock, and nothing else
	@echo "install: .venv is ready; the command is $(BIN)/push1st"

serve: $(INSTALLED) ## run the demo: WebSockets on 127.0.0.1:6001, API on 127.0.0.1:6002, console on 127.0.0.1:6003
	@exec $(BIN)/push1st serve

test: $(INSTALLED) $(NODE_INSTALLED) $(PROGRAMS_SOUGHT) ## run every test: unit and contract, real clients against a real server, the book
ifeq ($(ARGS),)
	@echo "test: other people's clients, clusters and the book, five files at a time; beside them unit and contract, two at a time"
	@rm -f $(VENV)/.failed-*
	@$(MAKE) --no-print-directory -j 2 test-waiting test-busy
	@[ ! -e $(VENV)/.failed-waiting ] || { echo "$(RUN_AGAIN)"; $(BIN)/python -m pytest $(AGAIN) $(WAITING); }
	@[ ! -e $(VENV)/.failed-busy ] || { echo "$(RUN_AGAIN)"; $(BIN)/python -m pytest $(AGAIN) -o cache_dir=.pytest_cache/busy $(BUSY); }
else
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS) || { \
		[ $$? -eq 1 ] && echo "$(RUN_AGAIN)" && $(BIN)/python -m pytest $(AGAIN) $(ARGS); }
endif

# Parts of `make test`. A part with failed tests leaves a file, and does not end the other part.
test-waiting:
	@$(RUN_WAITING) || { [ $$? -eq 1 ] && touch $(VENV)/.failed-waiting; }

test-busy:
	@$(RUN_BUSY) > $(VENV)/busy.log 2>&1; code=$$?; echo "test: unit and contract"; cat $(VENV)/busy.log; \
		[ $$code -eq 0 ] || { [ $$code -eq 1 ] && touch $(VENV)/.failed-busy; }

test-ready: $(INSTALLED) ## compile the tests once; otherwise each process of `make test` compiles them
	@echo "test-ready: compiling the tests"
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null

test-long: $(INSTALLED) $(NODE_INSTALLED) $(PROGRAMS_SOUGHT) ## run the tests that take minutes: repeated kills, long outages, long model runs
	@echo "test-long: only the tests marked long, six at a time, since most of them wait, and then those marked alone;"
	@echo "test-long: about a quarter of an hour"
	@failed=0; \
		$(RUN_LONG) -m "long and not alone" $(PARALLEL_LONG) $(or $(ARGS),$(LONG)) || [ $$? -eq 5 ] || failed=1; \
		$(RUN_LONG) -m "long and alone" $(or $(ARGS),$(LONG)) || [ $$? -eq 5 ] || failed=1; \
		exit $$failed
	@echo "test-long: the pictures of the console's pages are in .pictures"

test-broker: $(INSTALLED) $(NODE_INSTALLED) $(PROGRAMS_SOUGHT) ## run the tests of brokers and clusters with the server of a container image: IMAGE=redis:7.4-bookworm
	@docker run --rm --entrypoint sh $(IMAGE) -c 'cat "$$(command -v valkey-server || command -v redis-server)"' > $(VENV)/broker-server
	@chmod +x $(VENV)/broker-server
	@echo "test-broker: $$($(VENV)/broker-server --version)"
	@BROKER_SERVER=$(CURDIR)/$(VENV)/broker-server $(BIN)/python -m pytest $(PARALLEL) tests/contract tests/cluster $(ARGS)

model: $(INSTALLED) ## look for missed messages in histories, with pages and with MQTT; 4 models of 10 minutes; SECONDS=N changes this, SEED=N repeats
	@seed=$${SEED:-$$$$}; echo "model: SEED=$$seed begins here again"; \
		MODEL_SECONDS=$(SECONDS) SEED=$$seed $(BIN)/python -m pytest -s $(ARGS) \
		tests/unit/core/test_resume_model.py tests/unit/protocols/mqtt/test_flow_model.py

model-cluster: $(INSTALLED) ## drive a cluster through thousands of random joins, crashes and broker restarts; hours
	@seed=$$$$; echo "model-cluster: make model-cluster ARGS=--hypothesis-seed=$$seed does the same again"; \
		MODEL_EXAMPLES=$${MODEL_EXAMPLES:-5000} $(BIN)/python -m pytest -m '' --timeout 7200 --hypothesis-seed=$$seed $(ARGS) tests/cluster/test_model.py tests/cluster/test_mqtt_model.py

coverage: $(INSTALLED) ## measure which branches the unit and contract tests take; fails under the floor in pyproject.toml
	@echo "coverage: tests/unit and tests/contract, in one process"
	@$(BIN)/coverage run -m pytest -q tests/unit tests/contract $(ARGS)
	@$(BIN)/coverage report

check: $(INSTALLED) ## format, lint, types, layers, spelling: what must be clean before a commit
	@echo "check: ruff format, ruff, mypy, import-linter, codespell, tsc"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@git ls-files | xargs $(BIN)/codespell
	@if $(WITH_NODE) command -v node >/dev/null && [ -e $(CLIENTS)/node_modules/.bin/tsc ]; then \
		$(WITH_NODE) $(CLIENTS)/node_modules/.bin/tsc --project $(CLIENTS)/tsconfig.json; \
	else echo "check: tsc is skipped: it needs Node.js, and the packages that make test fetches"; fi

bench: $(INSTALLED) ## measure this server and its peers: deliveries, CPU a delivery, memory a connection
	@$(BIN)/python bench/bench.py $(ARGS)

bench-cluster: $(INSTALLED) ## measure two nodes and a broker, and two workers, against two of soketi's with its Redis adapter
	@$(BIN)/python bench/bench.py --cluster $(ARGS)

bench-history: $(INSTALLED) ## measure what history, pages and their acknowledgements cost; about twenty minutes
	@$(BIN)/python bench/appends.py
	@$(BIN)/python bench/bench.py --suite history --slices $(ARGS)
	@$(BIN)/python bench/bench.py --suite pages $(ARGS)
	@$(BIN)/python bench/resumption.py

bench-sse: $(INSTALLED) ## measure server-sent events against WebSockets and nchan; about seven minutes
	@$(BIN)/python bench/bench.py --suite sse $(ARGS)

bench-fairness: $(INSTALLED) ## measure the latency of other clients while a few connections flood the server; about four minutes
	@$(BIN)/python bench/fairness.py $(ARGS)

format: $(INSTALLED) ## rewrite the code the way `make check` wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## write the three lock files again: the newest versions that pyproject.toml allows, with the hashes of their files
	@$(PYTHON) -m venv --clear .lock
	@.lock/bin/pip install --quiet --disable-pip-version-check uv
	@$(LOCK) pyproject.toml --group dev --output-file requirements-dev.lock
	@$(LOCK) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock
	@$(LOCK) --group node --output-file requirements-node.lock
	@for file in requirements*.lock; do \
		{ echo "# Written by \`make lock\`; do not edit. CONTRIBUTING.md says what each lock file is for."; cat $$file; } > .lock/text; \
		cat .lock/text > $$file; done
	@rm -rf .lock
	@echo "lock: requirements.lock, requirements-dev.lock and requirements-node.lock are written"

clean: ## remove what the other targets made
	@echo "clean: .venv, node_modules and caches"
	@rm -rf $(VENV) $(CLIENTS)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): requirements-dev.lock pyproject.toml
	@echo "install: making $(VENV) with $$($(PYTHON) --version), which takes about half a minute"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Without Node.js there is nothing to fetch; tests/programs.sh has listed the tests that are skipped.
$(NODE_INSTALLED): $(CLIENTS)/package.json $(CLIENTS)/package-lock.json | $(PROGRAMS_SOUGHT)
	@if $(WITH_NODE) command -v npm >/dev/null; then \
		echo "test: fetching the JavaScript clients"; \
		$(WITH_NODE) npm ci --prefix $(CLIENTS) --no-fund --no-audit --loglevel=error && touch $@; \
	fi

# Programs of other people, for the tests that need them: Node.js, Chromium, nginx, Caddy, …
$(PROGRAMS_SOUGHT): tests/programs.sh $(INSTALLED)
	@sh tests/programs.sh
	@touch $@
