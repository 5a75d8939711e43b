# Verbs of the house. Everything runs in .venv, made from requirements.lock; nothing else on the machine is touched.
# ARGS goes to the command behind the verb:  make serve ARGS="--port 9000"   make test ARGS="tests/unit -k batcher"

VENV  := .venv
STAMP := $(VENV)/.installed
IMAGE ?= hearth
ARGS  ?=
# PYTHON=/path/to/python3.12 picks the interpreter; otherwise the newest supported one that can make environments.
PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help install serve test fuzz check chaos soak format bench image container-test lock clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make or renew .venv (the verbs below do it themselves)
	@:

# exec: signals go straight to the server, which answers Ctrl-C by draining and leaving with 0, so make stays quiet.
serve: $(STAMP) ## start the server
	@exec $(VENV)/bin/hearth serve $(ARGS)

test: $(STAMP) ## run every test
	@exec $(VENV)/bin/python -m pytest $(ARGS)

fuzz: $(STAMP) ## a million wrong inputs, over all decoders; what fails is kept in tests/fuzz/corpus
	@exec $(VENV)/bin/python -m tests.fuzz $(ARGS)

check: $(STAMP) ## lint, format, types, and known vulnerabilities where there is a network
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python .ci/audit.py

chaos: $(STAMP) ## faults for minutes: nothing lost, all back in time (the short form is in `make test`)
	@exec $(VENV)/bin/python -m pytest tests/chaos --long $(ARGS)

SOAK_MINUTES ?= 30
soak: $(STAMP) ## half an hour of load, faults and jobs: nothing grows
	@exec $(VENV)/bin/python benchmarks/soak.py --minutes $(SOAK_MINUTES) $(ARGS)

format: $(STAMP) ## let ruff repair what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# PROGRAM=throughput, latency, mixed, memory, cold …: benchmarks/README.md
PROGRAM ?= overhead
bench: $(STAMP) ## measure what the server costs
	@exec $(VENV)/bin/python benchmarks/$(PROGRAM).py $(ARGS)

image: ## build the container image
	docker build $(ARGS) -t $(IMAGE) .

# COMPOSE="docker-compose -f docker-compose.yml -f overlay.yml": another compose, or overlays. DOCKER_HOST names the engine.
COMPOSE ?= docker compose
container-test: image ## build the image, and try it with compose: ask, kill, stop
	@exec $(or $(PYTHON),python3) docker/trial.py --compose "$(COMPOSE)"

# The user's own uv settings (mirrors, local indexes) must not leak into the lock.
lock: $(STAMP) ## renew requirements.lock from pyproject.toml
	env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
	  $(VENV)/bin/uv pip compile pyproject.toml --extra dev --extra openvino --extra postgres --universal --python-version 3.11 --upgrade \
	  --generate-hashes --custom-compile-command "make lock" --quiet --output-file requirements.lock $(ARGS)

clean: ## remove .venv, caches and build results (weights and jobs in $HEARTH_HOME stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find app models tests benchmarks docker -name __pycache__ -prune -exec rm -rf {} +

# --no-deps: the lock is complete, and it leaves out on purpose what one package asks for and nobody imports.
$(STAMP): requirements.lock pyproject.toml
	@set -eu; rm -f $@; \
	if [ ! -x $(VENV)/bin/pip ]; then \
	  near=; python=; \
	  for name in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3); do \
	    "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue; \
	    near=$$name; "$$name" -c 'import ensurepip, venv' 2>/dev/null || continue; python=$$name; break; \
	  done; \
	  if [ -z "$$python" ] && [ -n "$$near" ]; then \
	    echo "make: $$near cannot make virtual environments; install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; \
	  elif [ -z "$$python" ]; then \
	    echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  rm -rf $(VENV); "$$python" -m venv $(VENV); \
	fi; \
	echo "Installing into $(VENV) (several GB with CUDA's libraries; only when requirements.lock changes) ..."; \
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock; \
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@
