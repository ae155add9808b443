# `make run`: a short first night.  `make test`: what is checked in minutes; `make test-all`: the attack
# suite of the second wall and other slow ones too.  All set up what is missing.

PYTHON ?= python3
VENV ?= .venv
ARGS ?= --experiments 8
BIN = $(VENV)/bin
# One more than there are cores, since many tests wait; a file's tests stay together, and share what they set up.
TESTS = $(BIN)/python -m pytest -n $(shell echo $$(($$(nproc) + 1))) --dist loadfile --no-loadscope-reorder
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-all lint attack setup clean

run: setup
	$(BIN)/python -m agent.loop $(ARGS)

test: $(VENV)/tests
	$(TESTS) -m "not slow"

test-all: test
	$(TESTS) -m slow

lint: $(VENV)/tests
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

attack: $(VENV)/tests
	$(BIN)/python -m bench.attack

setup: $(VENV)/ready

# Where $(PYTHON) has a torch of 2.11 or newer (a GPU image), that one is used and never replaced: OWN_TORCH is the
# folder it is in, and the environment sees it and what lies beside it.
OWN_TORCH := $(shell $(PYTHON) -c 'from importlib.metadata import distribution; d = distribution("torch"); \
  print(d.locate_file("") if tuple(map(int, d.version.split(".")[:2])) >= (2, 11) else "")' 2>/dev/null)
SITE = $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')
EXTRAS = $(if $(OWN_TORCH),example,example$(COMMA)torch)
COMMA = ,

$(VENV)/ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "setting up $(VENV): a minute or two, longer where torch must be downloaded"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: the venv module is missing; install it, like: apt install python3-venv" >&2; exit 2; }
	@$(if $(OWN_TORCH),echo "using the torch of $(OWN_TORCH)" && echo "$(OWN_TORCH)" > $(SITE)/own_torch.pth)
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/tests: $(VENV)/ready
	@$(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
