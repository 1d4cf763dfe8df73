# make lab     install, then the quick study: the CoT2 table in minutes
# make test    install, then lint, types and tests, the slow ones too
# make fast    the same without slow tests and checks of shapes: two minutes on two cores, to run after each edit
# make format  install, then rewrite the code as lint wants it, as far as that goes by itself
# make docs    install, then write anew what pages quote from programs
# make bench   install, then measure this machine
# make clean   remove what builds and tests leave behind; runs and results stay
# Each works alone on a machine with Python 3.11 and pip, and again without reinstalling.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
CODE := tinylatent tasks theory tests examples
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: install lab check test fast format docs bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

lab: install
	$(BIN)/tinylatent reproduce mnns --profile quick --workers $(WORKERS)

check: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

test: check
	$(PYTEST)

fast: check
	$(PYTEST) -m "not slow" --hypothesis-profile fast --override-ini addopts=--import-mode=importlib

format: install
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: install
	$(BIN)/python -m tests.pages

bench: install
	$(BIN)/tinylatent bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/.ipynb_checkpoints
	find tinylatent tasks theory tests -name __pycache__ -prune -exec rm -rf {} +
