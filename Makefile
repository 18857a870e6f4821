# Everything runs from a virtual environment in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
PAGE := src/tollkeeper/page/index.html
AUDIT := .venv-audit
EVENTS ?= 10000000

.PHONY: soak setup runtime ui package audit demo test test-long check lint types torture bench bench-peers scale clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# What a server needs and nothing else, at the same versions, in DIR.
runtime: DIR ?= .venv-runtime
runtime:
	$(PYTHON) -m venv $(DIR)
	$(DIR)/bin/python -m pip install --quiet --constraint constraints.txt pip
	$(DIR)/bin/python -m pip install --quiet --constraint constraints.txt .

# The page that the server shows at /. It needs Node from version 20 on; where there is none, ui/with-node installs one.
ui: $(PAGE)

$(PAGE): ui/node_modules/.package-lock.json $(shell find ui/src -type f) ui/index.html ui/build.mjs ui/tsconfig.json
	PYTHON=$(PYTHON) ui/with-node npm --prefix ui run --silent build

ui/node_modules/.package-lock.json: ui/package.json ui/package-lock.json
	PYTHON=$(PYTHON) ui/with-node npm --prefix ui ci --ignore-scripts
	touch $@

# Both distributions in dist/, checked file by file, and run from new environments with nothing but what they require.
package: $(READY) $(PAGE)
	$(BIN)/python .ci/package.py

# Known vulnerabilities of the pinned versions; .ci/audit.py says what the exit code means.
audit: $(AUDIT)/.ready
	$(AUDIT)/bin/python .ci/audit.py constraints.txt .ci/audit-constraints.txt

$(AUDIT)/.ready: .ci/audit-constraints.txt constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --constraint constraints.txt pip
	$(AUDIT)/bin/python -m pip install --quiet --constraint .ci/audit-constraints.txt pip-audit
	touch $(AUDIT)/.ready

demo: $(READY) $(PAGE)
	$(BIN)/tollkeeper demo

test: check $(PAGE)
	$(BIN)/python -m pytest -n 3 --dist loadfile

# The same tests; the costly ones take many more cases.
test-long: check $(PAGE)
	LONG_TESTS=1 FUZZ_FACTOR=10 $(BIN)/python -m pytest -n 3 --dist loadfile

check: lint types

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# SEED repeats the plan of a run.
torture: $(READY)
	$(BIN)/tollkeeper prove --rounds 50 $(if $(SEED),--seed $(SEED))

bench: $(READY)
	$(BIN)/python -m bench

# What cannot be installed is named in the report; the rest is measured all the same.
$(PEERS): $(READY) bench/peers/constraints.txt
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--constraint bench/peers/constraints.txt --editable '.[peers]' && touch $(PEERS)

bench-peers: $(PEERS)
	$(BIN)/python -m bench peers

scale: $(PEERS)
	$(BIN)/python -m bench scale --events $(EVENTS)

# SECONDS of load; exit code 1 when memory, handles, the outbox or latency drift beyond what bench/soak.py states.
soak: SECONDS ?= 600
soak: $(READY)
	$(BIN)/python -m bench.soak --seconds $(SECONDS)

clean:
	rm -rf $(VENV) $(AUDIT) .venv-runtime .venv-node build dist *.egg-info
	rm -rf ui/node_modules src/tollkeeper/page/assets $(PAGE) src/tollkeeper/page/licenses.txt
