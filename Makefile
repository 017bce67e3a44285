# `make` alone lists the targets. ARGS is handed to the program behind demo, test, bench and its kin, soak, check-deploy and lock.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.stamp
UV := $(BIN)/uv
PEERS := .venv-avalanche
LITSERVE := .venv-litserve
unexport PYTHONDONTWRITEBYTECODE  # without bytecode every process compiles what it imports: torch takes it two seconds
# Where no terminal shows uv's own progress, a sign of life every ten seconds, for as long as the command runs.
PATIENTLY = test -t 2 || { s=0; while sleep 2 && kill -0 $$$$ 2>/dev/null; do s=$$((s + 2)); \
	test $$((s % 10)) -ne 0 || echo "    $$s s so far"; done & }
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kernels docs format bench bench-learners bench-learning bench-learning-peers bench-serving soak check-deploy lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv: locked packages, then headrace itself
	@echo ".venv is ready."

demo: $(STAMP) ## run the live demo, e.g. make demo ARGS="--seconds 60"
	@$(BIN)/headrace demo $(ARGS)

test: $(STAMP) ## check format and lint, then run every test, types among them; ARGS goes to pytest
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-kernels: $(STAMP) ## run the tests of models on the oldest kernels that torch has, as another processor would
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	  $(BIN)/pytest --numprocesses 3 --dist loadfile tests/models $(ARGS)

docs: $(STAMP) ## build the site of docs/ into build/site; a link or an anchor that leads nowhere fails
	@$(BIN)/python docs/build.py

format: $(STAMP) ## format the code and apply the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure what the README claims
	@$(BIN)/python -m benchmarks $(ARGS)

bench-learners: $(STAMP) ## measure what learners reach on real data, e.g. make bench-learners ARGS="--data data"
	@$(BIN)/python -m benchmarks.learners $(ARGS)

bench-learning: $(STAMP) ## measure what is kept of a stream sorted by class, e.g. make bench-learning ARGS="--data data"
	@$(BIN)/python -m benchmarks.learning $(ARGS)

bench-learning-peers: $(STAMP) $(PEERS)/.stamp ## measure Avalanche on the same streams, in an environment of its own
	@$(BIN)/python -m benchmarks.learning.peers $(ARGS)

bench-serving: $(STAMP) $(LITSERVE)/.stamp ## measure the sampler beside plain FastAPI and LitServe; wants wrk (Debian: apt-get install wrk)
	@$(BIN)/python -m benchmarks serving $(ARGS)

soak: $(STAMP) ## kill workers 200 times, harm their servers, recount every record; e.g. make soak ARGS="--kills 20"
	@$(BIN)/python -m benchmarks.soak $(ARGS)

check-deploy: $(STAMP) ## check the compose files, the Dockerfile and the Prometheus configuration
	@$(BIN)/python deploy/check.py $(ARGS)

lock: $(STAMP) ## resolve deploy/*.lock again; ARGS=--upgrade moves to the newest versions
	$(LOCK) $(ARGS) --all-extras --group dev --output-file deploy/requirements.lock pyproject.toml
	$(LOCK) $(ARGS) --constraint deploy/requirements.lock --output-file deploy/runtime.lock pyproject.toml
	printf 'hatchling\nuv\n' | $(LOCK) $(ARGS) --constraint deploy/requirements.lock --output-file deploy/bootstrap.lock -

$(LITSERVE)/.stamp: deploy/requirements.lock | $(STAMP)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(LITSERVE)
	@$(UV) pip install --quiet --python $(LITSERVE)/bin/python --constraint deploy/requirements.lock --editable . litserve==0.2.19
	@touch $@

clean: ## remove .venv, tools and caches; what the demo learned stays in .headrace
	rm -rf .venv $(PEERS) $(LITSERVE) .headrace/tools build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is taken away first and set last, so that an interrupted set-up starts over on an empty environment.
$(STAMP): pyproject.toml deploy/bootstrap.lock deploy/requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old: install Python 3.11 or newer, and name it if need be: make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@if test -e $@; then rm $@; else echo "1/4 an empty .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; fi
	@echo "2/4 the installer and the build backend, checked against deploy/bootstrap.lock"
	@$(PATIENTLY); exec $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/bootstrap.lock
	@echo "3/4 the packages of deploy/requirements.lock: torch alone is 5 GB, once"
	@$(PATIENTLY); exec $(UV) pip sync --python $(BIN)/python --require-hashes --compile-bytecode deploy/requirements.lock
	@echo "4/4 headrace itself"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# With the same torch and NumPy as ours, so that speeds compare.
$(PEERS)/.stamp: deploy/requirements.lock | $(STAMP)
	@$(UV) venv --quiet --clear --python $(BIN)/python $(PEERS)
	@$(UV) pip install --quiet --python $(PEERS)/bin/python --constraint deploy/requirements.lock avalanche-lib==0.6.0
	@touch $@
