# The verbs. Each one sets up what it needs; `nereid --help` has the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests
CHECKPOINT ?= zoo/shapes/checkpoint
LLM ?= zoo/sections/checkpoint
REPOSITORY ?= build/repository
ENGINE ?= onnxruntime
ARGS ?=
EXPORT = $(BIN)/nereid export diffusion $(CHECKPOINT) --engine $(ENGINE) --out $(REPOSITORY)
EXPORT_LLM = $(BIN)/nereid export llm $(LLM) --out $(REPOSITORY)

.PHONY: help setup browser demo export export-llm serve test test-clients lint reference bench bench-sd15 bench-engines bench-schedulers bench-ladder bench-vae-tiles bench-layout bench-page bench-llm bench-batches perf docker-build docker-up docker-export clean

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): pyproject.toml client/pyproject.toml export/pyproject.toml zoo/pyproject.toml benchmarks/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; install Python 3.11 with venv (Debian: apt-get install python3.11 python3.11-venv)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "error: $(PYTHON) must be Python 3.11 with venv (Debian: apt-get install python3.11 python3.11-venv)"; exit 1; }
	@echo "making the virtual environment in $(VENV) (a few minutes, most of it downloads)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on torch==2.13.0 $(TORCH_INDEX)
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on -e client -e '.[serve,gateway,dev]' -e export -e zoo -e benchmarks
	@touch $@

setup: $(STAMP) ## Make the virtual environment and install everything

demo: setup ## Export the shipped models, start Triton, draw six pictures, write a section, make a page
	@$(BIN)/nereid demo --repository $(REPOSITORY) $(ARGS)

export: setup ## Export CHECKPOINT to REPOSITORY (ENGINE=onnxruntime|openvino|tensorrt|tensorrt-rtx|torch)
	@$(EXPORT) $(ARGS)

export-llm: setup ## Export the language model LLM to REPOSITORY (ARGS='--precision int8')
	@$(EXPORT_LLM) $(ARGS)

serve: setup ## Serve REPOSITORY
	@$(BIN)/nereid serve --repository $(REPOSITORY) $(ARGS)

$(TEST_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --progress-bar on -e 'export[nncf,tensorrt-rtx]'
	@touch $@

browser: ## Install Chromium from Debian, where that can be done; tests draw pages in it, `nereid page` pictures of them
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing Chromium" \
	  && apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	  || echo "there is no Chromium, and it cannot be installed from here (Debian: apt-get install chromium): pages are not drawn in a browser"

test: setup $(TEST_STAMP) browser ## All tests, those with a real Triton included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-clients: setup ## Clients of other projects, unchanged, against a real server (ARGS='--only openai-python'); keeps docs/clients.md
	@$(BIN)/python tests/clients/run.py $(ARGS)

lint: setup ## What a change must pass: ruff (lint, format), mypy (strict), pyright (imports)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright

reference: setup ## Write docs/reference.md anew from the tables of fields, errors and limits
	@$(BIN)/python -m nereid.serving.reference

bench: setup ## Nereid against diffusers and batching servers, under load
	@$(EXPORT)
	@$(BIN)/nereid bench compare --repository $(REPOSITORY) $(ARGS)

bench-sd15: setup ## The same at Stable Diffusion 1.5's sizes, random weights
	@$(BIN)/nereid bench sd15 $(ARGS)

bench-engines: setup ## The UNet on every engine and precision, beside PyTorch (ARGS='--models shapes')
	@$(BIN)/nereid bench engines $(ARGS)

bench-schedulers: setup ## Every scheduler, step count and variation: time, PSNR, score, memory (ARGS='--recommend 95')
	@$(EXPORT)
	@$(BIN)/nereid bench schedulers --repository $(REPOSITORY) --checkpoint $(CHECKPOINT) $(ARGS)

bench-ladder: setup ## From plain diffusers to all of Nereid, rung by rung, peers beside (ARGS='--models sd15-256')
	@$(BIN)/nereid bench ladder $(ARGS)

bench-vae-tiles: setup ## The VAE's decode of large pictures, whole and by tiles, beside diffusers
	@$(BIN)/nereid bench vae-tiles $(ARGS)

bench-layout: setup ## Layouts with attention and MLP reused, beside fewer steps; a server under load (ARGS='--rounds 1')
	@$(BIN)/nereid bench layout $(ARGS)

bench-page: setup ## Pages from a brief: seconds until the first section and until all is there, and of each stage (after make demo)
	@$(BIN)/nereid bench page --repository $(REPOSITORY) $(ARGS)

bench-llm: setup ## The language model against onnxruntime-genai, transformers, llama.cpp; batching, prefix cache, speculation
	@$(BIN)/nereid bench llm $(ARGS)

bench-batches: setup ## A batch in the gaps of interactive completions: what callers wait, what it gets done (ARGS='--rates 1')
	@$(EXPORT_LLM)
	@$(BIN)/nereid bench batches --repository $(REPOSITORY) $(ARGS)

perf: setup ## perf_analyzer over a range of concurrencies
	@$(EXPORT)
	@$(EXPORT_LLM)
	@$(BIN)/nereid bench perf --repository $(REPOSITORY) $(ARGS)

docker-build: ## Build the container
	docker compose -f docker/compose.yaml build

docker-up: ## Triton, Prometheus and Grafana (GPU=1 for compose.gpu.yaml, NEREID_API_KEY=... for the gateway, too)
	docker compose -f docker/compose.yaml $(if $(GPU),-f docker/compose.gpu.yaml) up

docker-export: ## Export inside the container (ENGINE=tensorrt CHECKPOINT=... REPOSITORY=...)
	docker build -f docker/Dockerfile --target export -t nereid-export:0.2.0 .
	docker run --rm --gpus all -v $(abspath $(CHECKPOINT)):/checkpoint:ro -v $(abspath $(dir $(REPOSITORY))):/out nereid-export:0.2.0 \
	  export diffusion /checkpoint --engine $(ENGINE) --device cuda --precision fp16 --out /out/$(notdir $(REPOSITORY)) $(ARGS)

clean: ## Remove everything that was built
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
