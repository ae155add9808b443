# `make run`: a short first night.  `make test`: everything that is checked.  Both set up what is missing.

PYTHON ?= python3
VENV ?= .venv
ARGS ?= --experiments 8
BIN = $(VENV)/bin

.PHONY: run test setup lint attack clean

run: setup
	$(BIN)/python -m agent.loop $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/pyright

attack: setup
	$(BIN)/python -m bench.attack

setup: $(VENV)/ready

# A GPU image's own torch is used where it is 2.11 or newer; else pip takes the pinned build for this machine.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: install the venv module, like apt install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV): a minute or two, longer where torch must be downloaded"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
