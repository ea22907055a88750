# The few words of this house. Each creates the environment in .venv when it is missing or older
# than what it is made from; `make test PYTHON=/path/to/python` uses another one as it is.
SHELL := /bin/bash
BOOTSTRAP ?= python3
VENV := .venv
PYTHON ?= $(VENV)/bin/python
ARGS ?=
WORKERS ?= 2
SANITIZER ?= memcheck

ifeq ($(PYTHON),$(VENV)/bin/python)
ENVIRONMENT := $(VENV)/.installed
endif

# Clients do not all fit into one environment: one for each file of pinned versions.
CLIENTS := $(patsubst tests/clients/environments/%.txt,.venv-clients/%,$(wildcard tests/clients/environments/*.txt))

.PHONY: serve test clients-test browser-test screenshots format lint type bench chaos gpu gpu-profile gpu-sanitize install clean

serve: $(ENVIRONMENT)  ## serve the demo pair on http://127.0.0.1:8000 (ARGS="MODEL --draft ...")
	$(PYTHON) -m server.cli.main serve $(ARGS)

# Two processes, and whole files to each, as files share their servers.
test: $(ENVIRONMENT)
	$(PYTHON) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

clients-test: $(ENVIRONMENT) $(CLIENTS:=/.installed) tests/clients/js/node_modules/.package-lock.json
	@for place in $(CLIENTS); do \
	  echo "$$place"; \
	  OUTDRAFT_SERVER_PYTHON=$(PYTHON) $$place/bin/python -m pytest -q tests/clients $(ARGS) || exit 1; \
	done

# Playwright's own browser where it can be fetched, else one of the system's.
browser-test: $(ENVIRONMENT) tests/browser/node_modules/.package-lock.json
	$(PYTHON) -m pip install --disable-pip-version-check --quiet -c constraints.txt playwright
	$(PYTHON) -m playwright install chromium || echo "make browser-test: taking a browser from the PATH"
	$(PYTHON) -m pytest -q tests/browser $(ARGS)

screenshots: $(ENVIRONMENT)  ## pictures of the playground, by the browser of browser-test (ARGS="--only race-phone")
	$(PYTHON) -m tests.browser.screenshots $(ARGS)

format: $(ENVIRONMENT)
	$(PYTHON) -m ruff check --fix --quiet . || true
	$(PYTHON) -m ruff format .

lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

type: $(ENVIRONMENT)
	$(PYTHON) -m mypy

bench: $(ENVIRONMENT)
	$(PYTHON) -m benchmarks.speculation $(ARGS)

chaos: $(ENVIRONMENT)  ## break everything around a server, by a seed (ARGS="--only storm --soak-s 900 ...")
	$(PYTHON) -m tests.chaos $(ARGS)

gpu: $(ENVIRONMENT)  ## prove and measure what needs a GPU (ARGS="--stage 2 --only decode ...")
	$(PYTHON) -m benchmarks.gpu $(ARGS)

gpu-profile: $(ENVIRONMENT)
	$(PYTHON) -m benchmarks.gpu.profile $(ARGS)

# Looks for wrong addresses in the kernels' own tests; several times slower than these.
gpu-sanitize: $(ENVIRONMENT)
	@if command -v compute-sanitizer; then \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(SANITIZER) --error-exitcode 1 \
	    $(PYTHON) -m pytest -q -x -m gpu --timeout 0 $(or $(ARGS),tests/kernels/test_kv_cache_write.py); \
	else echo "make gpu-sanitize: compute-sanitizer is not on PATH"; exit 1; fi

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(BOOTSTRAP) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Outdraft needs Python 3.11 or newer; name one with make BOOTSTRAP=python3.12 ...')"
	$(BOOTSTRAP) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.venv-clients/%/.installed: tests/clients/environments/%.txt constraints.txt
	$(BOOTSTRAP) -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

tests/browser/node_modules/.package-lock.json: tests/browser/package-lock.json
	@if command -v npm; then cd $(<D) && npm ci --no-audit --no-fund && touch node_modules/.package-lock.json; \
	else echo "npm is not installed: what axe would find is skipped"; fi

tests/clients/js/node_modules/.package-lock.json: tests/clients/js/package-lock.json
	@if command -v npm; then cd $(<D) && npm ci --no-audit --no-fund && touch node_modules/.package-lock.json; \
	else echo "npm is not installed: the JavaScript clients are skipped"; fi

clean:
	rm -rf $(VENV) .venv-clients tests/clients/js/node_modules tests/browser/node_modules build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
