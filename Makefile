# Everything here runs on a fresh machine with Python 3.11+ and make: the targets bootstrap .venv from the
# hash-pinned locks themselves. ARGS goes to the commands, TESTS to pytest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
JOBS ?= 2

.PHONY: help serve test lint bench bench-backup bench-cluster bench-resilience conformance mutation lock clean docs

help:
	@echo "make serve   run the product with the sandbox on http://127.0.0.1:8470"
	@echo "make test    run every test (TESTS=path selects, JOBS=n sets the processes)"
	@echo "make lint    ruff, mypy --strict, the import rules"
	@echo "make bench   time it against its peers (takes some minutes)"
	@echo "make bench-backup    time it with and without backups"
	@echo "make bench-cluster   time the cluster against the embedded default and Celery (ARGS=--faults freezes its stores)"
	@echo "make bench-resilience   time the resilience kit against its peers (ARGS=--check holds it to its limits)"
	@echo "make conformance        run the kit's probes over its peers and write docs/resilience/conformance.md"
	@echo "make mutation           mutate the kit and see which changes its tests miss (ARGS=\"retry bulkhead\" selects)"
	@echo "make lock    write the locks anew from pyproject.toml (needs uv)"

$(VENV)/.base: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Bellbuoy needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base requirements-dev.lock requirements-tools.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-tools.lock
	touch $@

serve: $(VENV)/.base
	$(BIN)/bellbuoy serve --sandbox $(ARGS)

test: $(VENV)/.dev
	sh tests/install-servers.sh
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv-bench/.done: requirements-bench.lock requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --require-hashes -r requirements-bench.lock
	.venv-bench/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

bench: .venv-bench/.done
	.venv-bench/bin/python bench/embedded.py $(ARGS)

bench-backup: .venv-bench/.done
	.venv-bench/bin/python bench/backup.py $(ARGS)

bench-cluster: .venv-bench/.done
	.venv-bench/bin/python bench/cluster.py $(ARGS)

bench-resilience: .venv-bench/.done
	.venv-bench/bin/python bench/resilience.py $(ARGS)

conformance: .venv-bench/.done
	.venv-bench/bin/python bench/conformance_matrix.py docs/resilience/conformance.md

mutation: $(VENV)/.dev
	$(BIN)/python bench/mutation.py $(ARGS)

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock"
LOCK := $(COMPILE) --extra service --extra sandbox
lock:
	$(LOCK) --group build pyproject.toml -o requirements.lock
	$(LOCK) --extra cluster --extra kubernetes --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(LOCK) --extra cluster --extra kubernetes --group build -c requirements-dev.lock pyproject.toml -o deploy/requirements.lock
	$(LOCK) --extra cluster --group build --group bench -c requirements.lock pyproject.toml -o requirements-bench.lock
	$(COMPILE) --no-deps --group tools pyproject.toml -o requirements-tools.lock

clean:
	rm -rf .venv .venv-bench .pytest_cache .mypy_cache .ruff_cache
