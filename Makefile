# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
VENV ?= .venv
export VENV
PY = $(VENV)/bin/python

.PHONY: setup demo test lint clean

setup:
	@bash tools/setup_env.sh

demo: setup
	$(PY) tools/demo.py

test: setup
	$(PY) -m pytest

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) work_dirs build *.egg-info .pytest_cache .ruff_cache .hypothesis
