# `make run` and `make test` set up what they need in .venv; the second time they start at once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
LOCK ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-all chaos picture results check docs notebooks image extras lock sbom audit clean

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
		tests/test_loop_failures.py tests/test_envelopes.py

# What the README shows of a report; needs an installed Chromium. CELLS is a folder of runs: docs/guide/studies.md has the
# sweep that makes those of the picture.
CELLS ?= runs/picture
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
	$(BIN)/python -m tools.english

# By the hashes of requirements.lock where the platform is the lock's, else by the versions of constraints.txt;
# which of the two, and why, is said. LOCK=no takes constraints.txt anywhere.
$(VENV)/ready: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv $(VENV)
	TORCH="$(TORCH)" LOCK="$(LOCK)" $(BIN)/python tools/install.py $(BIN)/python
	touch $@

# Tools that look at what is installed, in an environment of their own.
SUPPLY := .supply
$(SUPPLY)/ready: tools/supply.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -r tools/supply.txt
	touch $@

# The pages as a site in site/, with a search: `python -m http.server -d site`. Building it asks nothing of a network.
DOCS := .docs
$(DOCS)/ready: tools/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r tools/docs.txt
	touch $@

docs: $(DOCS)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

# Every notebook from top to bottom, as a reader would.
notebooks: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[notebooks]"
	$(BIN)/python -m pytest -rs tests/test_notebooks.py

# Whether the container's recipe keeps the rules of its trade, and the services the schema of Compose; nothing is built.
image: $(SUPPLY)/ready
	$(SUPPLY)/bin/hadolint examples/deploy/Dockerfile
	$(SUPPLY)/bin/check-jsonschema --builtin-schema vendor.compose-spec examples/deploy/compose.yaml

# Every extra alone, in an environment of its own: whether it installs and works, and is named where it is missing.
extras: $(VENV)/ready
	$(BIN)/python -m tools.extras

# Versions that are locked stay; UPGRADE=--upgrade takes the newest that pyproject.toml and constraints.txt let in.
# WHEELS is a folder with torch's wheel for CPUs, where its index cannot be reached.
lock: $(SUPPLY)/ready
	$(SUPPLY)/bin/uv pip compile --quiet pyproject.toml tools/lock.in --extra dev --extra text \
		--constraints constraints.txt --no-emit-package sentence-transformers --no-emit-package fedpeft \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(UPGRADE) \
		$(if $(WHEELS),--find-links $(WHEELS),--torch-backend cpu) --output-file requirements.lock

# A CycloneDX bill of materials of what is installed.
sbom: $(VENV)/ready $(SUPPLY)/ready
	mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file dist/sbom.cdx.json $(BIN)/python

# Known vulnerabilities of what is locked; skipped where no advisories can be had.
audit: $(SUPPLY)/ready
	$(SUPPLY)/bin/python tools/audit_lock.py $(SUPPLY)/bin/pip-audit

clean:
	rm -rf $(VENV) $(SUPPLY) $(DOCS) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
