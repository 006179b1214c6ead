# make train     everything from a bare machine to a trained, evaluated model (runs/quickstart)
# make test      lint, types and tests; KERNELS=1 adds those of the fused modules (Triton's interpreter, 1 GB)
# make test-long the tests that take many minutes: one run killed 50 times, one evaluation 20 times
# make test-gpu  the tests that need a CUDA GPU
# make check     lint and types alone
# make puzzles   a contact sheet of the generated puzzles (runs/puzzles.png)
# make clean     deletes the environment; runs/ stays

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/quickstart
DATA   := runs/embedded
START  := $(shell date +%s)

# With a GPU, DeepSpeed takes all of them; without, two ranks on the CPU, one thread each.
GPU    := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(GPU),0)
  LAUNCH      := OMP_NUM_THREADS=1 $(BIN)/deepspeed --num_gpus 2
  CONSTRAINTS := -c requirements/cpu.txt
else
  LAUNCH      := $(BIN)/deepspeed
endif
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false

.PHONY: train test test-long test-gpu check puzzles clean
.DELETE_ON_ERROR:

train: $(VENV)/installed
	$(BIN)/python -m data.quickstart --out $(DATA)
	$(BIN)/python -m model.backbones.tiny --shards $(DATA)/train --out $(DATA)/backbone
	$(LAUNCH) trainer/main.py configs/quickstart.yaml
	$(BIN)/python eval/run_shards.py --checkpoint $(RUN) --started $(START)

test: check $(if $(KERNELS),$(VENV)/kernels)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-long: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --long

test-gpu: $(VENV)/kernels
	$(BIN)/python -m pytest --gpu

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

puzzles: $(VENV)/installed
	mkdir -p runs
	$(BIN)/python -m data.puzzles --sheet runs/puzzles.png --size 128

# torch first: as the constraints name it, so that no other build of it is pulled in by a dependency.
$(VENV)/installed: setup.py requirements/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e .[dev]
	touch $@

$(VENV)/kernels: $(VENV)/installed
	$(BIN)/pip install --quiet $(CONSTRAINTS) -e .[kernels]
	touch $@

clean:
	rm -rf $(VENV)
