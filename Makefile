# `make` lists what can be done. Everything runs inside .venv, which the first command builds from requirements.lock.
# Another Python beside it: make VENV=.venv-3.13 PYTHON=/path/to/python3.13 test

# Without .pyc files every Airflow process would compile everything again; seconds each time.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
RUN := $(VENV)/bin
# without --quiet, which would silence --strict as well; the variable silences an advertisement on every build
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check audit docs bench bench-decisions bench-histories chaos lock clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'

# A second run costs nothing: the stamp is newer than what it was made from.
setup: $(VENV)/installed ## build .venv (the other commands do it by themselves)

$(VENV)/installed: requirements.lock pyproject.toml local/install.sh
	@VENV=$(VENV) local/install.sh

demo: setup ## live through half a year of flights in Airflow (FULL=1: March-December; INCIDENTS=1: with three accidents)
	$(PYTHON_IN_VENV) demo/run.py

up: setup ## start Airflow and MLflow on loopback, in the foreground; Ctrl-C stops all of it
	$(PYTHON_IN_VENV) local/up.py

# In one process: on two cores, two workers import Airflow, MLflow and the rest twice, and were slower.
test: setup ## run all tests (ARGS="-k name" is passed on to pytest)
	$(PYTHON_IN_VENV) -m pytest $(ARGS)

check: setup ## lint, format, types, import rules, bill of materials (dist/bom.json), documentation
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	PYTHONPATH=plugins $(RUN)/lint-imports
	$(PYTHON_IN_VENV) local/bill.py
	$(PYTHON_IN_VENV) docs/generate.py --check
	$(MKDOCS)

# --strict: a package that the service does not know is an error; without it an unreachable mirror looks like a clean audit
audit: setup ## compare the lock with known vulnerabilities; needs a network, so not part of check (ARGS="..." for pip-audit)
	@$(RUN)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes --requirement requirements.lock $(ARGS) \
		|| { echo "audit: failed. A table above names known vulnerabilities. Without one, the service did not answer for every" \
		"package, and nothing is shown to be safe: see docs/security.md." >&2; exit 1; }

docs: setup ## write the generated pages, then build the site into site/ (warnings are errors)
	$(PYTHON_IN_VENV) docs/generate.py
	$(MKDOCS)

bench: setup ## measure speed against the usual ways; writes benchmarks/results/speed.json
	$(PYTHON_IN_VENV) benchmarks/speed.py

bench-decisions: setup ## measure how often decisions err, beside the usual rules (QUICK=1: few runs); writes benchmarks/results/decisions.json
	$(PYTHON_IN_VENV) benchmarks/decisions.py

bench-histories: setup ## whole lives under the default policy, beside rivals and an oracle (QUICK=1: few); writes benchmarks/results/histories.json
	$(PYTHON_IN_VENV) benchmarks/histories.py

chaos: setup ## kill single commands (KILLS=5 of each), disturb whole lives (MINUTES=20, SEED=1, BATCHES=60), then the stack of `make up`
	$(PYTHON_IN_VENV) benchmarks/kills.py --writes --kills $(or $(KILLS),5)
	$(PYTHON_IN_VENV) benchmarks/chaos.py --minutes $(or $(MINUTES),20) --seed $(or $(SEED),1) --batches $(or $(BATCHES),60)
	$(PYTHON_IN_VENV) benchmarks/chaos_stack.py --seed $(or $(SEED),1)

lock: setup ## write requirements.lock anew from pyproject.toml (UPGRADE=1: with newer versions)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(firstword $(wildcard $(VENV)/tools/bin/uv) uv) pip compile --quiet --universal \
		--generate-hashes --no-emit-index-url --no-emit-find-links --all-extras --python-version 3.11 \
		$(if $(UPGRADE),--upgrade) pyproject.toml --output-file requirements.lock

clean: ## delete caches (the state is in .perennial, the environment in .venv: `rm -r` them to start afresh)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist site
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
