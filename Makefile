# Each recipe is a short command that you could type yourself; `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help demo serve test test-fast test-tensorrt mutants lint bench perf-analyzer soak clean

PROMPT ?= a cupcake
BUNDLE ?= bundles/nano
OUT ?= out
GRPC_PORT ?= 8001

# the first suitable interpreter; without one, prerequisites.py says what to install
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
REPOSITORY := build/$(notdir $(BUNDLE))
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

help:
	@echo 'make demo [PROMPT="a blue sphere"]  set up, export, serve, generate one object, stop; results in $(OUT)/'
	@echo 'make serve                          set up, export, serve until Ctrl-C'
	@echo 'make test | test-fast               set up and run all tests | all but those with a real server'
	@echo 'make test-tensorrt                  build the TensorRT engine of every graph of every family'
	@echo 'make mutants                        change one line at a time in a copy: a test must fail on each'
	@echo 'make lint                           check style, format and types'
	@echo 'make bench                          run all benchmarks; python -m benchmarks readme --write pastes figures'
	@echo 'make perf-analyzer                  NVIDIA perf_analyzer against a server of $(BUNDLE); docs/benchmarks.md'
	@echo 'make soak                           10,000 mixed requests, kills and cancels against a server of $(BUNDLE): hours'
	@echo 'make clean                          remove .venv, build and out'

$(VENV)/.serve: pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) diffsplat/serving/prerequisites.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e 'client[grpc,cli,viewer,formats]' -e '.[server]'
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	$(PIP_INSTALL) -e 'client[grpc,cli,viewer,formats]' -e '.[server,dev]'
	@touch $@

demo: $(VENV)/.serve
	@$(BIN)/python -m export $(BUNDLE) --out $(REPOSITORY)
	@$(BIN)/diffsplat demo "$(PROMPT)" --repository $(REPOSITORY) --out $(OUT)

serve: $(VENV)/.serve
	@$(BIN)/python -m export $(BUNDLE) --out $(REPOSITORY)
	@$(BIN)/diffsplat serve $(REPOSITORY) --grpc-port $(GRPC_PORT)

# one worker more than there are cores, four at most; one thread each: torch's threads wait busily for each other
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

test: $(VENV)/.test
	$(PYTEST)

test-fast: $(VENV)/.test
	$(PYTEST) -m 'not triton'

# the TensorRT engine of every graph of every family (very small): takes minutes
test-tensorrt: $(VENV)/.test
	$(PYTEST) --tensorrt -m tensorrt

# one-line faults in a copy of the code, each of which its test must notice
mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants.run

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

perf-analyzer: $(VENV)/.test
	$(BIN)/python -m benchmarks.load $(BUNDLE) --json $(OUT)/load.json

soak: $(VENV)/.test
	$(BIN)/python -m benchmarks.soak $(BUNDLE) --json $(OUT)/soak.json

clean:
	rm -rf $(VENV) build out
