# make demo    the whole way on a made-up archive, from photographs to a report, in a few minutes
# make test    the fast tests, without the network
# make check   style, types and the order of the rooms
# make slow    the slow tests and those on real photographs (../shared), where there are any
# make lock    choose the versions of requirements.lock anew (needs uv)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv demo test check slow lock
.DEFAULT_GOAL := .venv

.venv: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch .venv/ready

demo: .venv/ready
	$(BIN)/landmarks demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/ready
	$(BIN)/pytest -m "slow or shared"

lock:
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--no-annotate --no-header --no-emit-index-url --output-file requirements.lock
