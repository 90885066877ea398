# Every target starts from an empty clone: the first one makes .venv (scripts/setup-env.sh says how).
# PYTHON=/path/to/python names the interpreter; ARGS="..." is passed on, for instance make test ARGS="-k crops -x".

BIN := .venv/bin
IN_PROCESSES := -n logical --maxprocesses 8 --dist worksteal
QUICK := not slow and not long and not network and not gpu
export MPLBACKEND ?= agg
# images of containers often set it: every process would compile all libraries again, which takes 20 s
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-long test-lowest test-newest test-pre lint types docs lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# several processes (-n 2) would otherwise compete for the same cores with the threads of each
test test-slow test-long test-lowest test-newest test-pre: export OMP_NUM_THREADS ?= 1

install: ## make or update .venv with the package and its development tools
	@scripts/setup-env.sh

demo: install ## fit, predict, classify and cross-validate on toy data, into demo-output/
	$(BIN)/stcontrast demo --out demo-output --overwrite $(ARGS)

test: install ## run the tests that take seconds and need neither network nor GPU, in as many processes as cores
	$(BIN)/python -m pytest $(IN_PROCESSES) -m "$(QUICK)" $(ARGS)

test-slow: install ## run the tests on real slides, and those that kill processes
	$(BIN)/python -m pytest $(IN_PROCESSES) -m "slow and not network and not gpu" $(ARGS)

test-long: install ## run the tests that take minutes: long notebooks, the demo under a test
	$(BIN)/python -m pytest $(IN_PROCESSES) -m "long and not network and not gpu" $(ARGS)

test-lowest: install ## run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(call test-with,lowest,lowest-direct)

test-newest: install ## run the tests with the newest versions there are, in .venv-newest
	$(call test-with,newest,highest)

test-pre: install ## run the tests with the newest versions and pre-releases, in .venv-pre
	$(call test-with,pre,highest --prerelease allow)

define test-with
	scripts/setup-env.sh uv venv --quiet --allow-existing --python $(BIN)/python .venv-$(1)
	scripts/setup-env.sh uv pip install --quiet --upgrade --python .venv-$(1)/bin/python --resolution $(2) \
		--group test --editable .
	.venv-$(1)/bin/python -m pytest $(IN_PROCESSES) -o filterwarnings=default -m "$(QUICK)" $(ARGS)
endef

lint: install ## check style and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

types: install ## check types
	$(BIN)/mypy $(ARGS)

docs: install ## build the documentation into docs/_build/html; a warning is an error
	rm -rf docs/api/generated # pages of names that are gone
	$(BIN)/sphinx-build -M html docs docs/_build -W --keep-going $(ARGS)

lock: ## compile requirements.lock anew; ARGS=--upgrade for newer versions
	scripts/setup-env.sh uv pip compile --quiet --universal --no-emit-index-url --no-header --no-annotate \
		--python-version 3.12 pyproject.toml --group dev -o requirements.lock $(ARGS)

clean: ## remove caches and everything that was built, but not .venv
	rm -rf build dist demo-output benchmark-output docs/_build docs/api/generated docs/jupyter_execute
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
