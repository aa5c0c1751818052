# Each target works from a bare checkout: build.py makes what is missing, and returns at once when nothing is.
.DEFAULT_GOAL := help
BUILD := python3 build.py
PYTHON := .venv/bin/python
ADDRESS := 127.0.0.1:11435
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf

SECONDS := 600
VARIANTS := haswell alderlake zen4 sse42
MACHINES := x86_64 aarch64
# `--quick` for the main job alone in each.
SYSTEMS :=
CHECKED := (smoke or not e2e) and not thorough
# `cuda-check` has what it compiles tested.
LEFT_OUT := --ignore=tests/cuda
# Which models the tests want: to fetch one may take longer than a test may.
MODELS := smollm2
# One more process than processors, as many tests wait; what measures has the marker `alone`, and the others wait for it.
SIDE_BY_SIDE := --numprocesses=$(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4))) --dist=worksteal
# The tests start Python hundreds of times; each would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=
CLIENTS_PYTHON := .cache/clients-venv/bin/python
PAGE_PYTHON := .cache/page-venv/bin/python

.PHONY: help run freeze dist dist-cuda vulkan rpc cuda-check cuda-e2e release check e2e test variants systems arm64 emulated clients page families fuzz-api docs bench clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 10

run: ## serve the demo model from the source tree; builds what this machine needs for that
	@$(BUILD) run >/dev/null
	@echo 'Try it from another terminal:'
	@echo '  curl -N http://$(ADDRESS)/v1/chat/completions -d '\''{"model": "smollm2-135m-instruct.q4-1", "stream": true,'
	@echo '    "messages": [{"role": "user", "content": "Tell me a story about a fox."}]}'\'
	@exec $(PYTHON) -m shimmy serve --bind $(ADDRESS) --model-path $(MODEL)

freeze: ## make dist/shimmy, the one file for any Linux
	@$(BUILD) freeze

dist: ## make dist/shimmy-linux-* for both machines; MACHINES="x86_64 aarch64"
	@$(BUILD) freeze $(MACHINES)

dist-cuda: ## make dist/shimmy-linux-x86_64-cuda, that file with llama.cpp's CUDA for NVIDIA's GPUs; an hour on 2 cores
	@$(BUILD) cuda-portable

vulkan: ## compile llama.cpp's library for GPUs, which tests on the source tree use where it is there
	@$(BUILD) vulkan >/dev/null

rpc: ## compile llama.cpp's library for several machines, likewise
	@$(BUILD) rpc >/dev/null

cuda-check: ## compile the own part of llama.cpp's library for NVIDIA's GPUs for one of them, and test it; 5 minutes on 2 cores
	@$(BUILD) engine
	@$(BUILD) cuda-check >/dev/null
	$(PYTHON) -m pytest tests/cuda

cuda-e2e: dist-cuda ## test dist/shimmy-linux-x86_64-cuda on a machine without a GPU
	@$(BUILD) engine
	SHIMMY_BIN=dist/shimmy-linux-x86_64-cuda $(PYTHON) -m pytest tests/e2e/test_cuda_file.py tests/e2e/test_gpu_info.py

release: dist ## lay out a release of them in dist/release: files, packages, checksums
	@python3 -m tools.packages.release

check: ## lint, types, the tests on the source tree but for the longest, a few of tests/e2e; tells the slowest 20
	@$(BUILD) engine
	@for model in $(MODELS); do $(BUILD) model $$model >/dev/null || exit; done
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) $(STAND_INS) -m pytest -m '$(CHECKED)' $(LEFT_OUT) $(SIDE_BY_SIDE) --durations=20

e2e: ## all end-to-end tests, on the source tree; tells the slowest 20
	@$(BUILD) engine
	@$(BUILD) model >/dev/null
	$(PYTHON) -m pytest tests/e2e $(SIDE_BY_SIDE) --durations=20

# It has to be right the first time: one process for each processor and no more, and servers have the machine to themselves.
test families: SIDE_BY_SIDE := --numprocesses=$(shell n=$$(nproc); echo $$((n < 4 ? n : 4))) --dist=worksteal
test: CHECKED := smoke or not e2e
test: LEFT_OUT += --ignore=tests/packaging # the frozen file is installed and started, once
test: MODELS := smollm2 gemma
test: STAND_INS := -m tools.with_stand_ins # as the frozen file has them
test: vulkan rpc check ## everything: all tests on the source tree, the frozen file with clients of others and in other systems
	@$(BUILD) freeze
	SHIMMY_BIN=dist/shimmy $(PYTHON) -m pytest tests/e2e tests/packaging --durations=20
	@$(MAKE) --no-print-directory emulated clients systems cuda-check SYSTEMS=--quick

variants: ## the tests of the engine with other CPU variants; VARIANTS="haswell sse42"
	@$(BUILD) engine
	@$(BUILD) model >/dev/null
	set -e; for variant in $(VARIANTS); do \
		SHIMMY_TEST_CPU_VARIANT=$$variant $(PYTHON) -m pytest -q tests/engine tests/e2e -m 'not frozen'; \
	done

systems: ## end-to-end tests of the frozen file in other systems: Debian 11, an empty container, musl and more
	@$(BUILD) freeze
	@$(BUILD) model >/dev/null
	$(PYTHON) -m tests.roots $(SYSTEMS) dist/shimmy

arm64: ## end-to-end tests of the file for ARM64 in QEMU, with processors of several generations
	@$(BUILD) freeze aarch64
	@$(BUILD) model >/dev/null
	$(PYTHON) -m tests.roots.arm64 dist/shimmy-linux-aarch64

emulated: ## which CPU variant older processors get, in an emulator
	@$(BUILD) engine
	SHIMMY_EMULATOR="$$($(BUILD) emulator)" $(PYTHON) -m pytest tests/emulated

clients: ## the frozen file under the clients of others: openai, langchain, lm-eval and more
	@$(BUILD) freeze
	@$(BUILD) clients
	SHIMMY_BIN=dist/shimmy $(CLIENTS_PYTHON) -m pytest tests/clients

page: ## the frozen file's page in Chromium: every flow, accessibility, hostile replies; writes its screenshots
	@$(BUILD) freeze
	@$(BUILD) page
	SHIMMY_BIN=dist/shimmy $(PAGE_PYTHON) -m pytest tests/page

families: ## 200 forced calls of each family, one cut behind each of its tokens, 2,000 mutated quantisations; takes long
	@$(BUILD) freeze
	SHIMMY_BIN=dist/shimmy SHIMMY_TEST_CALLS=200 SHIMMY_TEST_CUTS=2000 SHIMMY_TEST_MUTATIONS=2002 $(PYTHON) -m pytest \
		tests/e2e/test_families.py tests/e2e/test_mutated_configurations.py $(SIDE_BY_SIDE)

fuzz-api: ## invalid and odd requests to the frozen file, made from /openapi.json; SECONDS=600
	@$(BUILD) freeze
	@$(BUILD) clients
	SHIMMY_FUZZ_SECONDS=$(SECONDS) SHIMMY_BIN=dist/shimmy $(CLIENTS_PYTHON) -m pytest tests/clients/test_fuzz.py

docs: ## write docs/reference.md from the tables in the code
	@$(BUILD) env
	$(PYTHON) -m tools.reference

bench: ## compare with llama-server (takes long)
	@$(BUILD) peer >/dev/null
	@$(BUILD) model >/dev/null
	$(PYTHON) -m tests.bench

clean: ## remove what was built, but keep the compiled engine and the models
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find shimmy tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
