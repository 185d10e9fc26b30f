# Every target makes .venv by itself when it is missing or older than requirements.lock.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench reproduce soak soak-damage soak-slurm screenshots lock clean

VENV := .venv
READY := $(VENV)/.ready
PEERS := .venv-bench
# Tests that give a server less than a second to answer, which it may not have beside others.
ALONE := tests/test_remote.py
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# The tests and the demo set their own thread counts; nothing is inherited from the shell.
export OMP_NUM_THREADS := 1

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml
	@echo "making $(VENV) from requirements.lock"
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@command -v uv >/dev/null || { python3 -m venv build/uv && build/uv/bin/pip install --quiet uv; }
	@UV=$$(command -v uv || echo build/uv/bin/uv); export VIRTUAL_ENV=$(CURDIR)/$(VENV); \
	$$UV venv --quiet --clear --python "$$(command -v python3)" $(VENV) && \
	$$UV pip sync --quiet requirements.lock && \
	$$UV pip install --quiet --no-deps --editable .
	@touch $@

# Other loaders, for benchmarks/loader.py alone: their needs don't fit beside requirements.lock. Without them it says so.
$(PEERS)/.ready: requirements-bench.lock pyproject.toml | $(READY)
	@echo "making $(PEERS) from requirements-bench.lock"
	@UV=$$(command -v uv || echo build/uv/bin/uv); export VIRTUAL_ENV=$(CURDIR)/$(PEERS); \
	$$UV venv --quiet --clear --python "$$(command -v python3)" $(PEERS) && \
	$$UV pip sync --quiet requirements-bench.lock && \
	$$UV pip install --quiet --no-deps --editable . && touch $@ || echo "the peers could not be installed"

demo: $(READY) ## made chips -> shards -> two training processes -> thresholds -> F2 per label
	rm -rf demo
	planet-shard synth --out demo/chips --count 2400 --kind jpg --seed 1
	planet-shard build --images demo/chips/train-jpg --labels demo/chips/train.csv --out demo/dataset
	planet-shard verify demo/dataset
	accelerate launch --config_file launch/cpu.yaml planet_dist/train.py --recipe small-resnet-32 \
	    --data demo/dataset --out demo/run data.split=tail:600 phases.0.epochs=20 phases.0.batch_size=64

test: $(READY) ## all tests, on two cores
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ALONE:%=--ignore=%)
	python -m pytest $(ALONE)

soak-slurm: $(READY) ## every fault of a cluster against a run that was left alone (root and SLURM; twenty minutes)
	python -m tests.soak_slurm

lint: $(READY) ## formatting, style and types
	ruff format --check .
	ruff check .
	mypy

bench: $(READY) $(PEERS)/.ready ## side-by-side measurements, one table each
	python benchmarks/loader.py
	python benchmarks/step.py
	python benchmarks/startup.py
	-python benchmarks/gpu.py
	python benchmarks/thresholds.py
	python benchmarks/decisions.py
	python benchmarks/build.py
	python benchmarks/cpu_step.py
	python benchmarks/plan.py

reproduce: $(READY) ## every row of both papers on made chips, small and quick, with the papers' tables and figures
	test -d build/chips || planet-shard synth --out build/chips --count 600 --kind both --seed 2
	test -d build/jpg || planet-shard build --images build/chips/train-jpg --labels build/chips/train.csv --out build/jpg
	test -d build/tif || planet-shard build --images build/chips/train-tif --labels build/chips/train.csv --out build/tif
	planet-dist reproduce paper1 --data build/jpg --tiff build/tif --scale quick --out build/paper1
	planet-dist reproduce paper2 --data build/jpg --scale quick --out build/paper2

soak: $(READY) ## a hundred kills of training at random moments: every run ends as one left alone (up to an hour)
	python -m tests.soak_kills

soak-damage: $(READY) ## a thousand random damages to small datasets: none silent, hanging or taking memory unbounded
	python tests/soak_damage.py --count 1000

screenshots: $(READY) ## the pictures in docs/images, from made chips (chromium; some ten minutes)
	python -m tests.screenshots

lock: ## pins the newest versions of everything into requirements.lock, and of the other loaders
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	    --no-header --no-annotate --output-file requirements.lock
	mkdir -p build && grep -E '^(pillow|simplejpeg|torch|torchvision|webdataset)==' requirements.lock > build/alike.txt
	uv pip compile pyproject.toml --extra bench --constraint build/alike.txt --universal --python-version 3.11 \
	    --upgrade --no-header --no-annotate --output-file requirements-bench.lock

clean: ## removes what the other targets made
	rm -rf demo build $(VENV) $(PEERS)
