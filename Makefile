# `make demo` runs the main job on embedded data, `make test` passes the tests; both set up .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
MURINE := $(BIN)/murine
DEMO := runs/demo

.PHONY: demo test test-slow lint

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "murine needs Python 3.11 or newer, found " + sys.version.split()[0] + "; say make PYTHON=python3.11")'
	@echo "installing murine and what it needs into .venv (about 6 GB, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Each step resumes or is complete already when it is run again.
demo: .venv/ready
	$(MURINE) shards source=simulated images=3000 size=64 out=$(DEMO)/shards/train
	$(MURINE) shards source=simulated images=600 size=64 where=split=test seed=1 out=$(DEMO)/shards/test
	$(MURINE) simulate out=$(DEMO)/recording
	$(MURINE) pretrain recipe=demo out=$(DEMO)/pretrain
	$(MURINE) predictivity recipe=demo out=$(DEMO)/predictivity
	$(MURINE) report runs=[$(DEMO)/pretrain,$(DEMO)/predictivity] out=$(DEMO)/report.html title='murine demo'

test: .venv/ready
	$(BIN)/python -m pytest

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
