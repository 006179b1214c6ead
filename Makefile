# make train     everything from a bare machine to a trained, evaluated model (runs/quickstart)
# make rl        the quickstart's model reinforced on puzzles (runs/quickstart_rl; with SEED=1 runs/quickstart_rl_1)
# make study     all objectives compared on generated tasks, some 90 minutes on 2 cores; goes on where it was (runs/study)
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
SEED   ?= 0
RL     := runs/quickstart_rl$(patsubst %,_%,$(filter-out 0,$(SEED)))
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

.PHONY: train rl study test test-long test-gpu check puzzles clean
.DELETE_ON_ERROR:

train: $(VENV)/installed
	$(BIN)/python -m data.quickstart --out $(DATA)
	$(BIN)/python -m model.backbones.tiny --shards $(DATA)/train --out $(DATA)/backbone
	$(LAUNCH) trainer/main.py configs/quickstart.yaml
	$(BIN)/python eval/run_shards.py --checkpoint $(RUN) --started $(START)

# Held-out puzzles before and after, answered as in training: tokens and latents are drawn, so that the share of right
# answers is the mean accuracy reward.
ANSWER := $(BIN)/python eval/run_shards.py --data $(DATA)/puzzles_heldout --temperature 1 --latents sample:1 --seed $(SEED)
rl: $(VENV)/installed
	test -f $(RUN)/summary.json || $(MAKE) train
	$(BIN)/python -m data.quickstart --out $(DATA) --puzzles
	$(LAUNCH) trainer/main.py configs/quickstart_rl.yaml run.name=$(notdir $(RL)) run.seed=$(SEED)
	$(ANSWER) --checkpoint $(RUN) --train $(DATA)/puzzles_train --out $(RL)/before
	$(ANSWER) --checkpoint $(RL) --out $(RL)/after
	$(BIN)/python eval/compare.py $(RL)/before $(RL)/after

study: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study prepare
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study run
	$(BIN)/python -m benchmarks.study report

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
