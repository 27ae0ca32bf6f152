# make demo    create .venv, install, run `jaxinterp demo`
# make test    install the test extra, run the default tests
# make help    the other targets
#
# Needs Python 3.11+ and make. Every target is idempotent: what is installed is installed again only when
# pyproject.toml changes.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
JOBS ?= 2
# Installed before the packages that need it, so that they take this release. On Linux, PyPI's own build of it brings several
# GB of CUDA; the CPU build suffices: make parity TORCH='--index-url <PyTorch's index of CPU builds> torch==2.13.0'
TORCH ?= torch==2.13.0
PIP = -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test properties lint format types layers doctest notebooks parity lowest wheel check clean

help:
	@echo "make demo       create .venv, install, run 'jaxinterp demo'"
	@echo "make test       install the test extra, run the default tests (JOBS=$(JOBS) processes)"
	@echo "make properties sweeps against the loop over whole forwards, and killed training, more often than in 'make test'"
	@echo "make lint       ruff: rules and format ('make format' mends what it can)"
	@echo "make types      pyright"
	@echo "make layers     import-linter: imports go strictly down"
	@echo "make doctest    the examples in the docstrings"
	@echo "make notebooks  execute the notebooks at small scale"
	@echo "make parity     compare with torch, transformers, transformer-lens (own environment .venv-parity)"
	@echo "make lowest     the tests on the lowest versions that pyproject.toml allows (.venv-lowest)"
	@echo "make wheel      'pip install .' into a fresh environment gives a working command"
	@echo "make check      all of the above but the demo, as CI does"
	@echo "make clean      remove the environments and caches"

# ---------------------------------------------------------------------------------------------- environments
# $(call venv,FOLDER): a virtual environment, made again if an earlier attempt was cut short.
define venv
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(1)/bin/pip || { echo "Creating $(1) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(1); }
endef

.venv/.ready: pyproject.toml
	$(call venv,.venv)
	@echo "Installing jaxinterp into .venv (a minute or two the first time)"
	.venv/bin/python $(PIP) -e .
	@touch $@

# One stamp for each extra of the main environment: .venv/.ready-test, .venv/.ready-lint, ...
.venv/.ready-%: .venv/.ready
	.venv/bin/python $(PIP) -e '.[$*]'
	@touch $@

.venv-parity/.ready: pyproject.toml
	$(call venv,.venv-parity)
	.venv-parity/bin/python $(PIP) $(TORCH)
	.venv-parity/bin/python $(PIP) -e '.[test,parity]'
	@touch $@

.venv-lowest/.ready: pyproject.toml .ci/lowest.py
	$(call venv,.venv-lowest)
	.venv-lowest/bin/python .ci/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP) -c .venv-lowest/lowest.txt -e '.[test]'
	@touch $@

# ---------------------------------------------------------------------------------------------------- targets
install: .venv/.ready

demo: .venv/.ready
	.venv/bin/jaxinterp demo

test: .venv/.ready-test
	.venv/bin/python -m pytest -m "not parity" -n $(JOBS) $(ARGS)

properties: .venv/.ready-test
	JAXINTERP_XLA=user .venv/bin/python -m pytest tests/experiments/test_zoo_induction.py $(ARGS)
	JAXINTERP_EXAMPLES=50 .venv/bin/python -m pytest tests/patching/test_engine.py -n $(JOBS) $(ARGS)
	JAXINTERP_KILLS=20 .venv/bin/python -m pytest tests/saes/test_kill.py $(ARGS)

lint: .venv/.ready-lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.ready-lint
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: .venv/.ready-lint
	.venv/bin/pyright

layers: .venv/.ready-lint
	.venv/bin/lint-imports

# With a user's settings, not those of tests/conftest.py.
doctest: .venv/.ready-test
	JAX_PLATFORMS=cpu MPLBACKEND=Agg .venv/bin/python -m pytest --doctest-modules jaxinterp $(ARGS)

notebooks: .venv/.ready-notebooks
	.venv/bin/python .ci/notebooks.py $(wildcard colab/*.ipynb)

parity: .venv-parity/.ready
	JAXINTERP_XLA=user .venv-parity/bin/python -m pytest -m parity $(ARGS)

# Warnings of old releases about one another are not ours to mend.
lowest: .venv-lowest/.ready
	.venv-lowest/bin/python -m pytest -m "not parity" -n $(JOBS) -W default $(ARGS)

wheel:
	PYTHON=$(PYTHON) bash .ci/wheel

check: lint layers types test doctest notebooks parity lowest wheel

clean:
	rm -rf .venv .venv-parity .venv-lowest build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
