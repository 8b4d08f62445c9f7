# make demo | bench | test | test-slow | lint | docs | release | commands | clean. Everything happens in .venv; PYTHON chooses what it is made from, and
# PIP_ARGS goes to pip: --extra-index-url https://download.pytorch.org/whl/cpu saves gigabytes where there is no GPU.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
SOURCES := hmrcompress cli recipes tests tools
# Tests in as many processes as tests/conftest.py counts cores; it keeps those of a file, which share fixtures, together.
PARALLEL := -n auto

.PHONY: help install demo bench evidence test test-slow lint docs serve pictures release commands clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       compress the shipped network on the open starter data and print what it cost (about 8 minutes)"
	@echo "make bench      measure the speed of a full-size network and write docs/benchmarks.md (20 minutes and more a table)"
	@echo "make evidence   measure every table again and open the sealed split (about a day)"
	@echo "make test       lint, types and the quick tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff and mypy"
	@echo "make docs       build the site into site/; a warning or a broken link fails (make serve shows it)"
	@echo "make pictures   draw the pictures of the documentation and run its notebook again"
	@echo "make release    build and check what is published, into dist/"
	@echo "make commands   write the list of commands and flags, tests/data/command_line.json, anew"
	@echo "make clean      remove $(VENV), caches and runs"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/hmrcompress run recipes/starter.yaml -o runs/demo
	$(BIN)/hmrcompress compress starter --data starter:calib --budget-mm 1 --preset quick -o runs/fast
	$(BIN)/python tools/demo.py runs/demo runs/fast docs

bench: $(STAMP)
	$(BIN)/hmrcompress bench --suite benchmarks -o docs/benchmarks
	$(BIN)/hmrcompress report docs/benchmarks -o docs/benchmarks.md --overwrite

# Every table of the documentation from nothing but the repository. Stopped and started again it goes on where it was.
# Only this opens the split `test`, once for a released network. It takes about a day on two cores, healing half of it.
evidence: $(STAMP)
	@test -z "$$(git status --porcelain --untracked-files=no)" || { echo "Commit first: figures have to name their code." >&2; exit 1; }
	test -d runs/probe || $(BIN)/hmrcompress finetune starter --stage probe --images 4096 -o runs/probe
	test -f runs/within.yaml || $(BIN)/hmrcompress search starter --tau 0.5 --merge-rule keep_last -o runs/within.yaml
	test -d runs/merged || $(BIN)/hmrcompress merge starter --plan runs/within.yaml -o runs/merged
	test -d runs/layers || $(BIN)/hmrcompress finetune runs/merged --stage probe --images 4096 -o runs/layers
	test -d runs/mended || $(BIN)/hmrcompress finetune runs/merged --stage heal --images 76800 -o runs/mended
	test -d runs/healed || $(BIN)/hmrcompress finetune runs/mended --stage probe --images 4096 -o runs/healed
	test -d runs/decoded || $(BIN)/hmrcompress finetune runs/layers --stage decoder --vae starter-fast -o runs/decoded
	test -d runs/decoded_regress || $(BIN)/hmrcompress finetune runs/layers --stage decoder --vae starter-fast \
		--set finetune.decoder=regress -o runs/decoded_regress
	test -d runs/frontier || $(BIN)/hmrcompress compress starter --data starter:calib --budget-mm 1 -o runs/frontier
	test -d runs/frontier_free || $(BIN)/hmrcompress compress starter --data starter:calib --budget-mm 1 --strides 1,2,4 \
		-o runs/frontier_free
	test -d runs/depth || $(BIN)/hmrcompress compress starter --data starter:calib --speedup 8 -o runs/depth
	test -f runs/depth_9.yaml || $(BIN)/hmrcompress pick runs/depth --layers 9 -o runs/depth_9.yaml
	test -d runs/depth_9 || $(BIN)/hmrcompress merge starter --plan runs/depth_9.yaml -o runs/depth_9
	test -f runs/depth_8.yaml || $(BIN)/hmrcompress pick runs/depth --layers 8 -o runs/depth_8.yaml
	test -d runs/depth_8 || $(BIN)/hmrcompress merge starter --plan runs/depth_8.yaml -o runs/depth_8
	test -f runs/depth_7.yaml || $(BIN)/hmrcompress pick runs/depth --layers 7 -o runs/depth_7.yaml
	test -d runs/depth_7 || $(BIN)/hmrcompress merge starter --plan runs/depth_7.yaml -o runs/depth_7
	test -f runs/depth_6.yaml || $(BIN)/hmrcompress pick runs/depth --layers 6 -o runs/depth_6.yaml
	test -d runs/depth_6 || $(BIN)/hmrcompress merge starter --plan runs/depth_6.yaml -o runs/depth_6
	$(BIN)/hmrcompress ablate ablations -o docs/results
	HMRCOMPRESS_OPEN_TEST=1 $(BIN)/hmrcompress ablate evidence -o docs/evidence
	$(BIN)/hmrcompress report docs/results -o docs/results.md --overwrite
	$(BIN)/hmrcompress report docs/evidence -o docs/evidence_tables.md --overwrite

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PARALLEL)

commands: $(STAMP)
	$(BIN)/python tests/command_line.py

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

pictures: $(STAMP)
	$(BIN)/python tools/line.py
	$(BIN)/python tools/rooms.py
	$(BIN)/python tools/notebook.py docs/quickstart.ipynb

release: $(STAMP)
	$(BIN)/python tools/release.py $(RELEASE_ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist site *.egg-info runs
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
