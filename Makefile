# Everything a newcomer needs: `make serve` and `make test`. Each sets itself up.
# The first Python 3.11 that runs (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
HTTP_PORT ?= 8000
GRPC_PORT ?= 9000
MODEL ?=
CONFIG ?=
TODAY := $(shell date +%F)
# A machine with a GPU may have no more than PyTorch and Triton, so this is its own Python, without .venv.
GPU_PYTHON ?= python3
# Beside the one in .venv: that of stock PyTorch 2.11, which tests compile for too, and that of the CUDA lock.
OLD_TRITON := 3.6.0
TRITONS := 3.7.1 $(OLD_TRITON)
BIN := .venv/bin
# The repository's folders must not become import names (transformers imports a package called `kernels`).
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help python setup setup-dev serve check test conformance soak bench figures bench-oracle quant-oracle test-gpu kernels-check kernels-golden kernels-mutations lock proto docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: python ## Create .venv with the stack for this machine
	@$(PYTHON) serving/bootstrap.py

setup-dev: python
	@$(PYTHON) serving/bootstrap.py dev test-models clients

python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: install python3.11, or run make PYTHON=/path/to/python3.11"; exit 1; }

serve: setup ## Serve a model: make serve [MODEL=folder-or-hub-id] [CONFIG=file] [HTTP_PORT=8000] [GRPC_PORT=9000]
	@exec $(BIN)/burrstone serve $(MODEL) $(if $(CONFIG),--config $(CONFIG)) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT)

check: setup-dev ## Format, lint, types, proto lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -n "$$tag" ]; then $(BIN)/buf breaking --against ".git#tag=$$tag"; else echo "buf breaking: no release tag yet"; fi

test: setup-dev .triton/$(OLD_TRITON) ## The whole test suite, real engine included
	$(BIN)/python -m pytest

test-gpu: ## On a GPU, with its own PyTorch and Triton: check and time the kernels; [RESULTS=file.json] [FLAGS=...]
	PYTHONPATH=.links $(GPU_PYTHON) -m burrstone.kernels.cli bench --out $(or $(RESULTS),bench/results/kernels-$(TODAY).json) $(FLAGS)

conformance: setup ## Public conformance suites on both engines, into docs/conformance.md: make conformance [SUITE=name]
	$(BIN)/python tests/conformance/run.py $(if $(SUITE),--only $(SUITE))

soak: setup-dev ## Long proofs: fuzzing, disconnect storms, memory; RESULTS=file keeps the figures as JSON
	@$(PYTHON) serving/bootstrap.py dev test-models soak
	$(BIN)/python -m pytest -m soak --timeout 7200 tests/soak $(if $(RESULTS),--results $(RESULTS))

bench: setup ## The headline figures of this machine, into bench/results and the README: about 19 minutes on two cores
	@$(PYTHON) serving/bootstrap.py peers
	$(BIN)/burrstone bench peers --out bench/results/peers-$(TODAY).json; test $$? -le 1
	$(BIN)/burrstone bench features --out bench/results/features-$(TODAY).json; test $$? -le 1
	@$(MAKE) --no-print-directory figures

figures: setup ## Write the README's table from the newest results again
	$(BIN)/python -m burrstone.bench.headline README.md

quant-oracle: setup ## Our quantizer beside llm-compressor, in an environment of its own: make quant-oracle [OUT=file]
	$(BIN)/python tests/quant/oracle/compare.py $(if $(OUT),--out $(OUT))

bench-oracle: setup ## Our load generator beside `vllm bench serve`, about ten minutes: make bench-oracle [OUT=file]
	$(BIN)/python tests/bench/oracle/compare.py $(if $(OUT),--out $(OUT))

.triton/%: | setup-dev
	@rm -rf $@.partial
	@$(BIN)/pip install --quiet --no-deps --target $@.partial triton==$* && mv $@.partial $@

kernels-check: setup-dev $(TRITONS:%=.triton/%) ## Compile the kernels for every GPU with every Triton that runs them somewhere
	@for version in $(TRITONS); do PYTHONPATH=.triton/$$version $(BIN)/burrstone kernels check || exit 1; done
	@$(BIN)/burrstone kernels check

kernels-golden: setup-dev $(TRITONS:%=.triton/%) ## Write the golden figures of every Triton anew, when those that differ were looked at
	@for version in $(TRITONS); do PYTHONPATH=.triton/$$version $(BIN)/burrstone kernels check --update-golden || exit 1; done
	@$(BIN)/burrstone kernels check --update-golden

kernels-mutations: setup-dev ## Break the kernels in many ways, each of which a test must catch: make kernels-mutations [OUT=file]
	$(BIN)/python tests/kernels/mutate.py $(if $(OUT),--out $(OUT))

lock: python ## Resolve pyproject.toml's pins again into requirements/*.txt
	$(PYTHON) requirements/lock.py

proto: setup-dev ## Generate the gRPC stubs again
	$(BIN)/python serving/proto/generate.py

docs: setup-dev ## Generate docs/config.md and docs/errors.md again
	$(BIN)/python -m burrstone.serving.docs docs

clean: ## Remove the environment and caches of this checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .triton *.egg-info
