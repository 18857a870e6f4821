# Everything runs from a virtual environment in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
AUDIT := .venv-audit
EVENTS ?= 10000000

.PHONY: soak setup runtime package audit demo test test-long check lint types torture bench bench-peers scale clean

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

# Both distributions in dist/, checked file by file, and run from new environments with nothing but what they require.
package: $(READY)
	$(BIN)/python .ci/package.py

# Known vulnerabilities of the pinned versions; .ci/audit.py says what the exit code means.
audit: $(AUDIT)/.ready
	$(AUDIT)/bin/python .ci/audit.py constraints.txt .ci/audit-constraints.txt

$(AUDIT)/.ready: .ci/audit-constraints.txt constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --constraint constraints.txt pip
	$(AUDIT)/bin/python -m pip install --quiet --constraint .ci/audit-constraints.txt pip-audit
	touch $(AUDIT)/.ready

demo: $(READY)
	$(BIN)/tollkeeper demo

test: check
	$(BIN)/python -m pytest -n 3 --dist loadfile

# The same tests; the costly ones take many more cases.
test-long: check
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
	rm -rf $(VENV) $(AUDIT) .venv-runtime build dist *.egg-info
