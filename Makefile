# featcache: frozen DETR detector -> cache -> mask head -> masks.   `make help` lists what there is.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

DETECTOR ?=
WEIGHTS ?=
IMAGES ?=
ANNOTATIONS ?=
CACHE ?= caches/train
VAL_CACHE ?=
HEAD ?= unet
RUN ?= runs/$(HEAD)
VIEWS ?= orig,hflip
CODEC ?= uint8
OUT ?= out
DEVICE ?= cpu
LIMIT ?=
SET ?=
TABLE ?= table05

# Nothing named: the embedded detector, on pictures that the project draws itself.
SHAPES := shapes
ifeq ($(DETECTOR)$(IMAGES)$(ANNOTATIONS),)
DRAWN  := $(SHAPES)/train/annotations.json
SOURCE := --detector shapes-tiny --images $(SHAPES)/train/images --annotations $(DRAWN)
else
SOURCE := --detector '$(DETECTOR)' --images '$(IMAGES)' --annotations '$(ANNOTATIONS)'
endif
WEIGHTS_FILE := $(if $(WEIGHTS),--weights '$(WEIGHTS)')

.DEFAULT_GOAL := help
.PHONY: help install demo walkthrough extract train evaluate predict ablate bench test check lint types format docs clean

help:  ## this list
	@echo "featcache: a frozen DETR detector becomes an instance segmenter, from a cache of its features"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  See it run, with the embedded detector on pictures the project draws itself:"
	@echo "    make demo"
	@echo "  The main job, from your images, COCO annotations and detector to masks and their AP:"
	@echo "    make demo DETECTOR=deimv2-femto WEIGHTS=model.onnx IMAGES=train2017 ANNOTATIONS=instances_train2017.json"
	@echo "  Its two stages, on their own (without variables, the embedded default):"
	@echo "    make extract DETECTOR=.. WEIGHTS=.. IMAGES=.. ANNOTATIONS=.. CACHE=caches/train [VIEWS=orig,hflip] [CODEC=uint8] [LIMIT=n]"
	@echo "    make train CACHE=caches/train RUN=runs/unet [HEAD=unet] [SET='steps=500 lr=1e-3']"
	@echo "    make evaluate CACHE=caches/val RUN=runs/unet"
	@echo "    make ablate TABLE=table05 CACHE=caches/train [VAL_CACHE=caches/val] [SET='--steps 5% hidden=64']"
	@echo "    make predict DETECTOR=.. WEIGHTS=.. RUN=runs/unet IMAGES=folder OUT=out"
	@echo "  DEVICE=cuda runs on the GPU.  PYTHON=python3.12 chooses the interpreter of a new $(VENV)."

install: $(READY)  ## create .venv and install everything
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("featcache needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[onnx,plot,dev]'
	@touch $@

demo: $(READY)  ## the main job: extract, train, evaluate, table and overlays in demo/
	@$(BIN)/python scripts/demo.py --detector '$(DETECTOR)' --weights '$(WEIGHTS)' --images '$(IMAGES)' \
	  --annotations '$(ANNOTATIONS)' --val-images '$(VAL_IMAGES)' --val-annotations '$(VAL_ANNOTATIONS)' \
	  --head $(HEAD) --out $(if $(filter-out out,$(OUT)),$(OUT),demo) --device $(DEVICE) $(if $(LIMIT),--limit $(LIMIT)) $(SET)

$(SHAPES)/train/annotations.json: | $(READY)
	$(BIN)/python scripts/make_shapes.py $(SHAPES)

walkthrough: $(READY)  ## the whole flow as a commented Python script, on 18 drawings
	$(BIN)/python scripts/walkthrough.py

extract: $(READY) $(DRAWN)  ## stage 1: images -> frozen detector -> cache
	$(BIN)/python -m pipeline extract $(SOURCE) $(WEIGHTS_FILE) --cache '$(CACHE)' --views $(VIEWS) --codec $(CODEC) \
	  --device $(DEVICE) $(if $(LIMIT),--limit $(LIMIT))

train: $(READY)  ## stage 2: cache -> mask head
	$(BIN)/python -m pipeline train --cache '$(CACHE)' --head '$(HEAD)' --run '$(RUN)' $(if $(VAL_CACHE),--val-cache '$(VAL_CACHE)') --device $(DEVICE) $(SET)

evaluate: $(READY)  ## COCO AP of a trained head, from the cache alone
	$(BIN)/python -m pipeline evaluate --cache '$(CACHE)' --run '$(RUN)' --device $(DEVICE)

predict: $(READY)  ## masks for a folder of images: overlays and COCO JSON
	$(BIN)/python -m pipeline predict --detector '$(or $(DETECTOR),shapes-tiny)' $(WEIGHTS_FILE) --run '$(RUN)' \
	  --images '$(or $(IMAGES),$(SHAPES)/val/images)' --out '$(OUT)' --device $(DEVICE)

ablate: $(READY)  ## many heads, one pass over the cache: a table and a plot in ablations/
	$(BIN)/python -m pipeline ablate '$(TABLE)' --cache '$(CACHE)' $(if $(VAL_CACHE),--val-cache '$(VAL_CACHE)') \
	  --out 'ablations/$(basename $(notdir $(TABLE)))' --device $(DEVICE) $(SET)

bench: $(READY)  ## the cache beside other formats, on one core (installs the extra `bench`)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python scripts/bench_cache.py

test: $(READY)  ## the whole test suite (uses ../shared where it is there)
	$(BIN)/python -m pytest

check: lint types test  ## format, lint, types, tests: what CI runs before the demo

lint: $(READY)  ## format check and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## static types, strict on featcache/
	$(BIN)/pyright

format: $(READY)  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## write docs/cli.md, and in docs/ the tables of settings and of the paper's figures
	@$(BIN)/python scripts/help_pages.py
	@$(BIN)/python scripts/field_tables.py
	@$(BIN)/python scripts/paper_tables.py

clean:  ## remove what demo, extract and train made here
	rm -rf demo walkthrough shapes caches runs ablations out
