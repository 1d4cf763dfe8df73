# make lab   install, then the quick study: the CoT2 table in minutes
# make test  install, then lint, types and tests
# Each works alone on a machine with Python 3.11 and pip, and again without reinstalling.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install lab test bench

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

lab: install
	$(BIN)/tinylatent reproduce mnns --profile quick --workers $(WORKERS)

test: install
	$(BIN)/ruff check tinylatent tasks theory tests
	$(BIN)/ruff format --check tinylatent tasks theory tests
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) -q

bench: install
	$(BIN)/tinylatent bench
