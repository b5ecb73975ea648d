# Every target works in .venv, which `make dev` builds from a Python 3.11 or newer, make and a package registry.
# Another interpreter: make dev PYTHON=/path/to/python3.12. More for pytest: make test PYTEST_ARGS="-k hooks -x".

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.made
LINK  := build/link

# The first that starts, is new enough and can make an environment (Debian's python3 lacks ensurepip).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# Settings of the caller's pip that would send packages somewhere else than .venv. The registry's settings stay.
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIRE_HASHES PYTHONPATH PYTHONHOME
export PIP_USER := 0
export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Pyright looks for a newer release of itself at each start.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help dev protos link check test test-all coverage docs demo bench families pull clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

dev: $(STAMP) ## build .venv (quick when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 with venv and ensurepip on PATH; install one (Debian: apt-get install python3-venv) or name it: make dev PYTHON=/path/to/python" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	$(PY) -m pip install --quiet --constraint constraints.txt pip
	@echo 'installing into $(VENV); the first time this takes a minute or more'
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[torch,mlx,server,grammar,agents,analysis,sae,tune,validate,dev]'
	@touch $@

# The folders under their import name, for tools that look on disk: protoc and pyright.
link:
	@mkdir -p $(LINK) && ln -sfn ../.. $(LINK)/probewire

protos: dev link ## regenerate the gRPC stubs from protos/*.proto
	$(PY) -m grpc_tools.protoc -I probewire/protos=protos --plugin=protoc-gen-mypy_grpc=$(VENV)/bin/protoc-gen-mypy_grpc \
		--python_out=$(LINK) --pyi_out=$(LINK) --grpc_python_out=$(LINK) --mypy_grpc_out=quiet:$(LINK) protos/*.proto

check: dev link docs ## ruff, format, pyright strict, stale stubs, arrows, circles, docs' links and commands, the Dockerfile's lint
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright
	$(PY) -m pytest --quiet tests/house/test_stubs.py tests/house/test_arrows.py tests/house/test_circles.py
	$(PY) -m pytest --quiet tests/clients/test_other_pages.py -k command
	$(VENV)/bin/hadolint Dockerfile

# A file stays in one process, so that its servers are started once; each process takes about 1 GB.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Servers that tests start import the same files again and again: what is compiled is kept, whatever the shell says.
test test-all: export PYTHONDONTWRITEBYTECODE :=

test: dev ## the default tests: torch and MLX on the CPU, the default model
	$(PY) -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-all: dev ## every test, the slow ones too, and those for CUDA where there is one
	$(PY) -m pytest -m "$$($(PY) -c 'import torch; print("" if torch.cuda.is_available() else "not cuda")')" $(PARALLEL) $(PYTEST_ARGS)

coverage: dev ## the default tests, and which lines they reach (half as long again; not part of test for that)
	COVERAGE_CORE=$$($(PY) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(PY) -m pytest $(PARALLEL) --cov=probewire --cov-report=term:skip-covered --cov-report=html:build/coverage $(PYTEST_ARGS)

docs: export NO_MKDOCS_2_WARNING := 1
docs: dev ## build/docs/site from docs/ and the docstrings; fails on a broken link
	$(PY) docs/site/build.py

demo: dev ## start a server with the default model and use it: capture, steer, patch
	$(PY) examples/demo.py

bench: dev ## ratios against plain inference and against peers
	$(PY) benchmarks/run.py

families: dev ## a table of every architecture that transformers can build small, each proven in this run
	$(PY) benchmarks/families.py
	$(PY) benchmarks/families.py --backend mlx

pull: dev ## fetch the default model into the cache
	$(VENV)/bin/probewire pull

clean: ## remove what was built or cached, but not .venv
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
