# Two commands do all the set-up: `make quickstart` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
# Bytecode is left to be made for what is imported: for all of it, it takes as long as the rest of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
RUN_NAME = $(notdir $(RUN:/=))
INTO := evals/records
RECORDS := config.json environment.json data.json metrics metrics.jsonl status.json stopped.json

.DELETE_ON_ERROR:
.PHONY: quickstart test test-all lint ablation bench bench-table campaign record results image-lock docs clean

quickstart: .venv/ready  ## train chat_v5 at nano size, score it, and set it beside the open-book reader
	$(BIN)/python -m ghost_jax.train --config=configs/chat_v5.py:nano
	if [ -f "$(GHOST_DATA)/ctibench/cti-mcq.tsv" ]; then \
	  $(BIN)/python -m evals.ctibench --book=open --reader=lexical --out=runs/open_book.json \
	  || echo "The open book is left out; the reason is above."; fi
	$(BIN)/python -m ghost_jax.report --runs=runs --out=report

test: .venv/ready-dev lint  ## what CI runs: everything that is quick
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: .venv/ready-all lint  ## before a release: the long tests as well
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

ablation: .venv/ready  ## the study's eight recipes at nano, and its table with our columns beside it
	$(BIN)/python -m ghost_jax.sweep --config=configs/sweeps/ablation.py:nano
	$(BIN)/python -m ghost_jax.report --runs=runs/sweeps/ablation-nano --out=report/ablation
	cat report/ablation/RESULTS.md

bench: .venv/ready  ## speed beside peers, those that are installed
	$(BIN)/python -m tests.bench.speed --out=report/bench $(addprefix --items=,$(wildcard $(GHOST_DATA)/ctibench/cti-mcq.tsv))
	@echo "to keep it: cp report/bench/speed-*.json tests/bench/records/ && make bench-table"

bench-table: .venv/ready  ## the speed table of docs/performance.md, from the records in the repository
	$(BIN)/python -m tests.bench.table

record:  ## keep a run's records, not its weights, for RESULTS.md: make record RUN=runs/chat_v5-nano
	@test -f $(RUN)/config.json || { echo "RUN=$(RUN) names no run directory: make record RUN=runs/chat_v5-nano"; exit 1; }
	rm -rf $(INTO)/.partial && mkdir -p $(INTO)/.partial
	cp -r $(wildcard $(addprefix $(RUN)/,$(RECORDS))) $(INTO)/.partial
	if [ -d $(RUN)/evals ]; then cp -r $(RUN)/evals $(INTO)/.partial; fi
	rm -rf $(INTO)/$(RUN_NAME) && mv $(INTO)/.partial $(INTO)/$(RUN_NAME)  # an interrupted copy leaves no record

campaign: .venv/ready  ## run or resume all experiments of RESULTS.md, a day and a half on two cores; CAMPAIGN=DIR holds their runs
	$(BIN)/python -m launch.campaign

results: .venv/ready  ## RESULTS.md from the run records in the repository
	$(BIN)/python -m ghost_jax.report --runs=evals/records --out=report
	cp report/study.png evals/records/study.png
	$(BIN)/python -m launch.results

image-lock: launch/image/cpu.lock launch/image/cuda.lock launch/image/tpu.lock  ## the packages of the image, by hash

# On Linux x86-64 and the Python of the Dockerfile (3.11), whose packages they name.
launch/image/cpu.lock: requirements-stores.txt requirements.txt
launch/image/cuda.lock: requirements-cuda.txt requirements-stores.txt requirements.txt
launch/image/tpu.lock: requirements-tpu.txt requirements-stores.txt requirements.txt
launch/image/%.lock: | .venv/ready
	$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --report=$@.json -r $<
	$(BIN)/python -c "$$LOCK" < $@.json > $@ && rm $@.json

define LOCK
import json, sys
for found in json.load(sys.stdin)["install"]:
    pin = found["metadata"]["name"] + "==" + found["metadata"]["version"]
    print(pin, "--hash=sha256:" + found["download_info"]["archive_info"]["hashes"]["sha256"])
endef
export LOCK

docs: .venv/docs/ready  ## the site in site/: docs/ and the API reference; a broken link is an error
	.venv/docs/bin/mkdocs build --strict --quiet

clean:  ## remove what commands made here, runs included
	rm -rf .venv runs report site

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  f"ghost_jax needs Python 3.11 to 3.13 and this is {sys.version.split()[0]}: run make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: about a minute and 1.2 GB"
	$(INSTALL) -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@

.venv/ready-all: .venv/ready-dev requirements-all.txt requirements-stores.txt
	$(INSTALL) -r requirements-all.txt
	touch $@

.venv/docs/ready: requirements-docs.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@
