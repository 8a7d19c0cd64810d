# The habits of this project. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Nothing is ever compiled here: a package without a wheel for this machine is an error that says so. Bytecode is written
# when a module is first imported, which is a small part of what pip would compile.
PIP_INSTALL := pip --disable-pip-version-check install -qq --only-binary=:all: --no-compile
PINNED := $(BIN)/$(PIP_INSTALL) -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format constraints container peers clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.all ## the whole way on the built-in sample set, into runs/demo
	$(BIN)/compress run demo --out runs/demo

test: lint ## lint, then every test, on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.dev ## ruff, mypy, import contracts
	@failed=0; \
	$(BIN)/ruff check -q || failed=1; \
	$(BIN)/ruff format -q --check || failed=1; \
	$(BIN)/mypy --no-error-summary --num-workers auto || failed=1; \
	contracts="$$($(BIN)/lint-imports --no-logo)" || { echo "$$contracts"; failed=1; }; \
	if [ $$failed = 0 ]; then echo "lint: ruff, mypy and the import contracts pass"; fi; \
	exit $$failed

format: $(VENV)/.dev ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

constraints: ## pin the newest versions in constraints.txt; torch stays
	@$(PYTHON) -m venv --clear build/newest
	@build/newest/bin/$(PIP_INSTALL) "$$(grep ^torch== constraints.txt)" '.[all,dev]'
	@head -n 1 constraints.txt > build/constraints.txt
	@build/newest/bin/pip list --format=freeze --exclude pip --exclude segpress | sed 's/+cpu$$//' >> build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/newest

container: $(VENV)/.dev ## build the server's image with buildah and prove that it runs
	PYTHON=$(BIN)/python serve/deploy/container.sh
	$(BIN)/python -m pytest tests/serve/test_serve_container.py

# What each needs besides itself: LitServe takes no forms without python-multipart, MLServer finds no event loop with a
# newer uvloop.
PEER_litserve := litserve python-multipart
PEER_mosec := mosec
PEER_bentoml := bentoml
PEER_mlserver := mlserver 'uvloop<0.22'

peers: $(addprefix build/peers/,litserve mosec bentoml mlserver) ## an environment for each server that ours is compared with

build/peers/%:
	@$(PYTHON) -m venv --clear $@.part
	$@.part/bin/$(PIP_INSTALL) $(PEER_$*) $$(grep -E "^(onnxruntime|pillow|numpy)==" constraints.txt)
	@rm -rf $@ && mv $@.part $@

clean: ## remove everything that was made, the environment included; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .cache .*_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# One environment in two layers, so that the demo does not wait for the tools of the tests.
$(VENV)/.all: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segpress needs Python 3.11 or newer, and $(PYTHON) is not; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the pinned dependencies into $(VENV): a minute or two"
	@$(PINNED) setuptools
	@$(PINNED) --no-build-isolation -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.all
	@echo "installing the tools of the tests into $(VENV)"
	@$(PINNED) --no-build-isolation -e '.[all,dev]'
	@touch $@
