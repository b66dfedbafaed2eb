# Targets: make cvpo (install and train), make test, make test-slow, make test-oldest, make test-simulators,
# make coverage, make mutation, make lint, make docs, make wheel-test, make bench-learner, make clean.
PYTHON ?= python3
VENV ?= .venv
# Another index for torch, e.g. https://download.pytorch.org/whl/cpu or .../whl/cu130
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: install install-dev install-docs cvpo test test-slow test-oldest test-simulators coverage mutation lint docs wheel-test bench-learner bench-peers clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-docs: $(VENV)/.installed-docs

# torch first and alone, so that the build chosen by TORCH_INDEX is the one that stays;
# safety-gymnasium last and without its dependencies, whose pins cannot be met on Python >= 3.11.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch ..."
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "installing the other dependencies ..."
	$(PIP) --editable .
	$(PIP) --no-deps safety-gymnasium==1.0.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	touch $@

cvpo: install
	$(BIN)/python recipes/cvpo.py $(ARGS)

test: install-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

# Tests of a minute and more, which make test leaves out.
test-slow: install-dev
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

# The same tests on the oldest versions that pyproject.toml allows, in an environment of their own.
test-oldest:
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) .ci/test-oldest $(ARGS)

# The tests of Brax and CRAX, with JAX on the CPU. Both are installed beside the rest. Takes half an hour.
test-simulators: install-dev
	$(PIP) --editable ".[brax]"
	$(PIP) --no-deps crax-bench==0.1.0
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/envs/test_gpu_simulator.py \
		tests/envs/test_jax_batch.py tests/laws/test_environments.py $(ARGS)

# Lines and branches that the tests reach, the slow ones too, also in the processes that they start:
# docs/testing.md. Takes about twice as long as both.
coverage: install-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 -m "slow or not slow" $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Which changes of the mathematics the tests notice, on a seeded sample: docs/testing.md. Takes half an hour.
mutation: install-dev
	$(BIN)/python benchmarks/mutation.py $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Any warning fails: a broken link, a reference that leads nowhere, a public name without an entry.
docs: install-docs
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Install the wheel into an empty environment and train with it. Takes minutes.
wheel-test:
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) .ci/wheel-test

# The learner's speed beside FSRL's: docs/performance.md. FSRL imports with older versions only, so it
# lives apart from everything else.
bench-learner: install
	$(BIN)/python benchmarks/learner.py $(ARGS)

bench-peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	@echo "installing torch and FSRL into .venv-peers ..."
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-oldest *.egg-info build dist docs/_build
