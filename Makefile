# Two commands do everything: `make serve` runs a CA, `make test` proves it. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIR ?= ./enrolld-data
WORKERS ?= auto

# Where an environment forbids it, each of hundreds of processes that tests start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test long chaos mutants lint format bench lock clean

$(VENV)/.serve: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.test: requirements-dev.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@ $(VENV)/.serve

serve: $(VENV)/.serve
	exec $(BIN)/enrolld --dir $(DIR) serve --init

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# The same tests with the large counts: tens of thousands of rounds.
long: lint
	ENROLLD_LONG=1 $(BIN)/python -m pytest -n $(WORKERS) --timeout 3600 $(ARGS)

# Nodes killed, their clocks set, PostgreSQL killed and its disk filled, hundreds of times. ENROLLD_SEED repeats an order.
chaos: $(VENV)/.test
	ENROLLD_LONG=1 $(BIN)/python -m pytest -s --timeout 14400 tests/end_to_end/test_chaos.py $(ARGS)

# Every line that is marked as enforcing an attack case, taken away in a copy: its test must fail. ARGS="--case 8".
mutants: $(VENV)/.test
	$(BIN)/python -m tests.attack_cases.mutation $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python -m bench

# Exact versions for Python 3.11 to 3.14; needs uv.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --quiet --no-header -o requirements.lock pyproject.toml
	uv pip compile --universal --python-version 3.11 --generate-hashes --quiet --no-header --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
