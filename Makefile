# make run [PORT=8000] [ORCH_HOME=.local]   the whole system on this machine, until Ctrl-C
# make engine-image                         the images of the demo engine and the network guard, for the Docker backend
# make image                                the images of compose.yaml: Roundhouse, PostgreSQL, Redis, demo engine, guard
# make test [ARGS=...]                      every test, on real servers; at the end, prints where the time went
# make test-quick [ARGS=...]                the tests that need no container, no browser and no deployment of processes
# make bench-venv                           the applications that `manage.py bench admit` compares with, in .venv-bench
# make lock                                 the lock files, after a change of requirements*.txt
# make check                                format, lint, types, imports, words, migrations, deployment checks, generated files

.DEFAULT_GOAL := run
# Two checks run at a time; starting the longest checks first saves time.
CHECKS := check-types check-migrations check-documents check-deployment check-imports check-processes check-words check-lint check-format
.PHONY: run engine-image image test test-quick test-postgres bench-venv lock check $(CHECKS) format clean
SHELL := /bin/sh
unexport PYTHONDONTWRITEBYTECODE  # otherwise every start compiles our modules, which takes a third of the start

# The first interpreter that is new enough; `make run PYTHON=/path/to/python` chooses a different interpreter.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))))

# Production settings with throwaway values: `check --deploy` reads the settings, and nothing connects to the URLs.
PRODUCTION = ORCH_ENVIRONMENT=production ORCH_REDIS_URL=rediss://:none@none \
	ORCH_DATABASE_URL='postgresql://app@none/none?sslmode=verify-full' \
	ORCH_DATABASE_OWNER_URL='postgresql://owner@none/none?sslmode=verify-full' \
	ORCH_ADMIN_KEY="$$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))')" \
	ORCH_SECRET_KEY="$$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))')" \
	ORCH_MASTER_KEY="$$(.venv/bin/python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')"

run: .venv/.local
	@exec .venv/bin/python -m config.local.launch

engine-image:
	@scripts/engine-image

image:
	@scripts/image

# With ARGS, the chosen tests run in one process.
test: .venv/.dev
ifeq ($(strip $(ARGS)),)
	@scripts/test
else
	@.venv/bin/python -m pytest $(ARGS)
endif

# The kinds of tests are pytest marks, set according to the fixtures of a test (docs/testing.md).
SIDE_BY_SIDE := .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: .venv/.dev
	@$(SIDE_BY_SIDE) -m 'not (docker or browser or deployment or embedded)' $(ARGS)

# The tests that send SQL, on the PostgreSQL in ORCH_PG_BIN, for example ORCH_PG_BIN=/usr/lib/postgresql/15/bin. Properties are tried
# with fewer random examples here: the same statements reach the server.
test-postgres: .venv/.dev
	@TEST_EXAMPLES=few $(SIDE_BY_SIDE) -m '(sql or embedded) and not (docker or browser or deployment)' $(ARGS)

bench-venv: .venv-bench/.made

lock: .venv/.dev
	@scripts/lock

# All checks, two at a time, also after a failure; make names the failed checks.
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

check-words:
	.venv/bin/python scripts/pointing-words --at-most 4.5

check-format:
	.venv/bin/ruff format --check

format: .venv/.dev
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

clean:
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis staticfiles

# A stamp file per set of requirements: the environment holds the set if the stamp exists and is newer than the requirements.
# Of packages, only wheels with a known hash are installed; the client, a folder of ours, is built by what is installed already.
PIP := -m pip --quiet --disable-pip-version-check install
LOCKED := $(PIP) --require-hashes --only-binary :all:

.venv/.local: requirements.lock requirements-local.lock .venv/.made
	@echo "Installing requirements ..."
	@.venv/bin/python $(LOCKED) -r requirements-local.lock
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.local
	@echo "Installing requirements of tests and checks ..."
	@.venv/bin/python $(LOCKED) -r requirements-dev.lock
	@.venv/bin/python $(PIP) --no-deps --no-build-isolation -e ./client
	@touch $@

.venv-bench/.made: bench/peers/requirements.lock bench/peers/servers.lock .venv/.made
	@echo "Installing the applications to compare with ..."
	@.venv/bin/python -m venv .venv-bench
	@.venv-bench/bin/python $(LOCKED) -r bench/peers/requirements.lock
	@.venv-bench/bin/python $(LOCKED) --no-deps --target .venv-bench/servers -r bench/peers/servers.lock
	@touch $@

.venv/.made:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || \
		{ echo "Roundhouse needs Python 3.11 or newer: make $(or $(MAKECMDGOALS),run) PYTHON=/path/to/python3" >&2; exit 1; }
	@mkdir -p .venv 2>/dev/null && test -w .venv || { echo "Cannot write to $(CURDIR): Roundhouse keeps its .venv there" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is incomplete; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@
