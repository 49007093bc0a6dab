# Every target but native and clean makes the checkout's own environment (.venv) first, where it is not there yet:
# nothing to activate, nothing installed outside this folder. Only Python 3.11 or newer and make are needed.

PY := .venv/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup native demo test test-long test-slow test-all asan processors lint types format reproduce bench gpu docs wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv and install convattn with its development tools (the others do this by themselves)
	@PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" tools/setup_venv.sh

native: ## compile the CPU kernels of csrc/ again, in place; for whichever environment convattn is installed in
	@$(or $(PYTHON),python3) tools/build_native.py

demo: setup ## train a small ACmix ResNet on real handwritten digits and print its accuracy and its run folder
	@.venv/bin/convattn train

# A process a core, one thread each: their threads would fight for the cores otherwise.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist loadfile

test: setup ## the tests of operators, layers, networks and data: a sample of each long matrix
	@$(PYTEST)

test-long: setup ## the tests of whole programs: tasks, commands, reports, exports; every change has to pass both
	@$(PYTEST) -m 'long and not slow'

test-slow: setup ## the tests that both leave out: the rest of the long matrices, whole runs
	@$(PYTEST) -m slow

test-all: setup ## every test
	@$(PYTEST) -m ''

asan: setup ## the tests of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	@PYTHON=$(PY) tools/test_sanitized.sh

processors: setup ## the calls of the CPU kernels' tests again: by clang, and on aarch64 (NEON, SVE) under qemu
	@PYTHON=$(PY) tools/test_processors.sh

lint: setup ## style and formatting (ruff)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup ## strict type check (mypy)
	@$(PY) -m mypy

format: setup ## put the code in form, mending what ruff can mend
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

reproduce: setup ## count every table of the papers; a page under reproduced/ (python -m reproduce --help has more)
	@$(PY) -m reproduce

bench: setup ## peak memory of a layer beside its rivals; a record under results/ (python -m benchmarks --help has more)
	@$(PY) -m benchmarks memory

gpu: setup ## all that needs a GPU, in nine minutes at most: tests, commands, records under results/
	@tools/gpu.sh

docs: setup ## the documentation as a website under site/
	@$(PY) -m pip install --quiet --editable '.[docs]'
	@$(PY) -m zensical build --strict
	@echo "site/index.html"

wheels: setup ## source distribution and wheel under dist/
	@PYTHON=$(PY) tools/build_wheels.sh

clean: ## remove .venv and everything built; runs/, reproduced/ and results/ stay
	rm -rf .venv build dist site src/*.egg-info src/convattn/_native .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
