# `make demo` does the main job, `make test` checks everything. Both need Python 3.11 or newer and nothing else.

# The version that is tested most comes first; `make PYTHON=...` takes another.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13; do command -v $$p && break; done),python3)
VENV ?= .venv
BIN := $(VENV)/bin
MINUTES ?= 15
# Where pip looks for PyTorch, if not where it looks for the rest: give PyTorch's CPU wheel index here on a machine
# whose registry serves CUDA builds only.
TORCH_INDEX ?=
# Where studies keep what is finished. The project's own results are in docs/results; RESULTS=mine measures afresh.
RESULTS ?= docs/results
# Where they work: the weights behind some results are never those behind others.
WORK ?= $(if $(filter docs/results,$(RESULTS)),runs,runs/$(RESULTS))
# A PyTorch that already drives a GPU is used as it is.
HAS_CUDA := $(shell $(PYTHON) -c "import torch; print(int(torch.cuda.is_available()))" 2>/dev/null)

# Threads that wait asleep leave their core to whatever else runs (src/tpdiff/threads.py).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-slow lint bench stage-latency frame-cost claim conversion ablations clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/.installed  ## Train a vanilla and a pyramidal model for equal time; demo/report.html (MINUTES=15)
	$(BIN)/tpdiff demo --minutes $(MINUTES)

test: $(VENV)/.installed lint  ## Lint, type check, and every test but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/.installed  ## The tests that take minutes
	$(BIN)/pytest -m "slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## Sampling, network and alignment figures of this machine (nothing else should run)
	$(BIN)/python benchmarks/sampling_latency.py
	$(BIN)/python benchmarks/network_throughput.py
	$(BIN)/python benchmarks/alignment_cost.py

stage-latency: $(VENV)/.installed  ## Sampling time by the number of stages (DEVICE=cuda; nothing else should run)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/stage_latency.py --device $(or $(DEVICE),cpu) --results $(RESULTS)

frame-cost: $(VENV)/.installed  ## Tokens, seconds and memory by the number of frames (DEVICE=cuda; nothing else should run)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/frame_cost.py --device $(or $(DEVICE),cpu) --results $(RESULTS)

claim: $(VENV)/.installed  ## Vanilla against pyramid: learning rates, three seeds, hours; resumable (DEVICE=cuda: larger)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_comparison.py configs/study-gameplay-overlap.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_comparison.py configs/study-gameplay-tubelets.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)

conversion: $(VENV)/.installed  ## A pretrained model made pyramidal for a tenth of its training, judged; hours, resumable (DEVICE=cuda: larger)
	$(BIN)/python benchmarks/conversion.py configs/conversion-wan-32.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)
	$(BIN)/python benchmarks/conversion.py configs/conversion-animatediff.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)

ablations: $(VENV)/.installed  ## What each part of the method is worth, by equal operations; hours, resumable (DEVICE=cuda: larger)
	$(BIN)/python benchmarks/ablations.py configs/ablation-fronts.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)
	$(BIN)/python benchmarks/ablations.py configs/ablation-jumps.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)
	$(BIN)/python benchmarks/ablations.py configs/ablation-stages.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)
	$(BIN)/python benchmarks/ablations.py configs/ablation-alignment.yaml --device $(or $(DEVICE),cpu) --results $(RESULTS) --work $(WORK)

clean:  ## Remove the environment and the demo
	rm -rf $(VENV) demo

$(VENV)/.installed: pyproject.toml constraints.txt
	@if ! $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is none; give one: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi
ifeq ($(HAS_CUDA),1)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
else
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
endif
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[dev]'
	touch $@
