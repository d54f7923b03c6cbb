# make demo    the whole way on a made-up archive, from images to a report, in a few minutes
# make test    the fast tests, without the network
# make check   style, types and the order of the rooms
# make slow    the slow tests and those on real images (../shared), where there are any
# make docs    the guide and the reference as pages, in site/
# make lock    choose the versions of requirements.lock anew
# make test-lowest  the fast tests on the lowest versions that pyproject.toml allows, in .venv-lowest (about 7 GB)
PYTHON ?= python3
BIN := .venv/bin
UV := .venv-uv/bin/uv
COMPILE := $(UV) pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --no-annotate --no-header --no-emit-index-url

.PHONY: .venv demo test test-lowest check slow docs lock
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
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/ready
	$(BIN)/pytest -m "slow or shared"

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(UV)
	$(COMPILE) --universal --output-file requirements.lock

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

.venv-lowest/ready: pyproject.toml $(UV)
	$(PYTHON) -m venv --clear .venv-lowest
	$(COMPILE) --resolution lowest-direct --output-file .venv-lowest/requirements.txt
	.venv-lowest/bin/pip install --quiet --requirement .venv-lowest/requirements.txt
	.venv-lowest/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch .venv-lowest/ready

test-lowest: .venv-lowest/ready
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest --numprocesses auto --dist worksteal
