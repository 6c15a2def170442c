# The front door for developers. Each target sets up what it needs below .venv/.
VENV ?= .venv
BIN = $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test lint bench bench-large bench-scale bench-year clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One mark per set of extras, renewed when the requirements change.
$(VENV)/.ready-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --config-settings editable_mode=compat -e '.[$*]'
	touch $@

demo: $(VENV)/.ready-demo
	examples/g2/run.sh $(BIN)

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/bench.py

bench-scale: $(VENV)/.ready-test
	$(BIN)/python benchmarks/scaling.py

bench-year: $(VENV)/.ready-test
	$(BIN)/python benchmarks/year.py

bench-large: $(VENV)/.ready-test
	$(BIN)/python benchmarks/large.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
