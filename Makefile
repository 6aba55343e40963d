# `make` alone lists what there is. Without PYTHON, a target first makes .venv, or brings it up
# to date when setup.cfg has changed; with PYTHON=/path/to/python it uses that environment as it
# is and installs nothing.

VENV   ?= .venv
TORCH  ?= torch==2.13.0
MODEL  ?= smollm2
# Gemma writes at half the speed: as many tokens as an hour buys.
TOKENS ?= $(if $(filter gemma3-270m,$(MODEL)),380000,700000)

CERTIFICATE ?= build/certificate.json
EXAMPLES    ?= 100

FILES ?= 10000
KILLS ?= 100
SOAK  ?= 100000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test slow bench bench-gpu measure adaptation exactness mutants drill draft draft-night pocket docs \
	figures notebook lint clean help python FORCE

ifdef PYTHON
PY := $(PYTHON)
INSTALLED := python
DEV := python
BENCH := python
DOCS := python
else
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.minispec
DEV := $(VENV)/.minispec-dev
BENCH := $(VENV)/.minispec-bench
DOCS := $(VENV)/.minispec-docs
endif

# With a PYTHON of one's own, what a target needs may be missing: say what to install.
need = @$(PY) -c 'import $(1)' 2>/dev/null || { \
	echo "make $@: $(PY) has no $(1): install minispec there with its extra [$(2)]" >&2; \
	exit 2; }

# Runs from this folder, so that it also serves an environment without an installed minispec.
MINISPEC = $(PY) -m minispec

# MODEL=pocket is here already, and needs no network.
demo: $(INSTALLED)  ## see MODEL decode plainly, and speculate over all, few and evolving ids
	$(call need,bokeh,report)
	$(MINISPEC) fetch $(MODEL)
	$(MINISPEC) doctor --model $(MODEL) --warm
	$(MINISPEC) compare --model $(MODEL) --prompts general code law medicine --limit 3 \
		--methods autoregressive,full,frspec@0.25,evospec --max-new-tokens 48 --out build/demo

# Two processes, a file each at a time. Threads that wait for others of their process sleep, since
# those wait in turn for a processor that the other process has.
test: $(DEV)  ## run the tests, but for the slow ones
	$(call need,pytest,dev)
	OMP_WAIT_POLICY=passive $(PY) -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(DEV)  ## run the slow tests
	$(call need,pytest,dev)
	@echo '$(PY) -m pytest -m slow'; $(PY) -m pytest -m slow; code=$$?; \
	if [ $$code -eq 5 ]; then echo "make slow: no test is marked slow, so none was run"; exit 0; fi; \
	exit $$code

bench: $(BENCH)  ## run the benchmarks
	$(call need,pytest_benchmark,bench)
	$(PY) -m pytest benchmarks --benchmark-only
	$(PY) -m benchmarks plain --backend reference
	$(PY) -m benchmarks plain --backend cpu
	$(PY) -m benchmarks head --json build/head.json
	$(PY) -m benchmarks scaling --json build/scaling.json
	$(PY) -m benchmarks block

# Gemma is left out where it has not been fetched: see `minispec fetch --help`.
measure: $(INSTALLED)  ## measure the figures of README again, into build/measure: half an hour
	$(call need,bokeh,report)
	$(MINISPEC) fetch smollm2
	$(MINISPEC) compare --backend cpu --limit 8 --switch --max-new-tokens 128 --out build/measure/smollm2 \
		--methods autoregressive,full,frspec@0.25,evospec@1536,evospec@512
	cp build/measure/smollm2/report.json build/measure/smollm2-float32.json
	if $(MINISPEC) fetch gemma3-270m 2>/dev/null; then \
		$(MINISPEC) compare --model gemma3-270m --dtype bfloat16 --backend cpu --limit 2 --switch \
			--methods autoregressive,full,frspec@0.25,frspec@32768,evospec@2621 \
			--out build/measure/gemma3-270m && \
		cp build/measure/gemma3-270m/report.json build/measure/gemma3-270m-bfloat16.json; \
	else cp benchmarks/results/gemma3-270m-bfloat16.json build/measure; fi
	@echo "python docs/readme_figures.py build/measure   # writes them into README.md"

bench-gpu: $(BENCH)  ## run the benchmarks of the CUDA kernels, where there is a GPU
	$(PY) -m benchmarks gpu

# As JSON into CERTIFICATE, with EXAMPLES drawn for each property.
exactness: $(DEV)  ## enumerate every branch of every verifier and shortlist, and certify exactness
	$(call need,hypothesis,dev)
	PYTHONPATH=.:tests:$$PYTHONPATH $(PY) tests/exactness/certificate.py --examples $(EXAMPLES) $(CERTIFICATE)

mutants: $(DEV)  ## change the code in every small way, and see the tests detect it
	$(call need,hypothesis,dev)
	PYTHONPATH=.:tests:$$PYTHONPATH $(PY) tests/exactness/mutants.py

# FILES, KILLS and SOAK make it shorter; half an hour with what it has.
drill: $(DEV)  ## feed damaged files to every reader, kill every writer, fill disks, run for long
	$(call need,pytest,dev)
	PYTHONPATH=.:tests:$$PYTHONPATH $(PY) -m drill --files $(FILES) --kills $(KILLS) --tokens $(SOAK) \
		--json build/drill.json

adaptation: $(BENCH)  ## what a draft that learns while it serves gains, and costs
	$(PY) -m benchmarks adaptation --quick --json build/adaptation.json

# A model with terms of its own has to be there already: see `minispec fetch --help`.
draft: $(INSTALLED)  ## train a draft for MODEL (smollm2) on TOKENS tokens, into build/draft/
	$(MINISPEC) fetch $(MODEL)
	$(MINISPEC) train draft --model $(MODEL) --tokens $(TOKENS) --out build/draft/$(notdir $(MODEL))

# 10 GB of text. Interrupted, it resumes. The last command sets both drafts beside each other on
# answers that neither was trained on.
draft-night: $(BENCH)  ## train the shipped draft of MODEL on, on 1,500,000 new tokens: a night
	$(MINISPEC) fetch $(MODEL)
	$(MINISPEC) train draft --model $(MODEL) --seed 1 --tokens 1500000 --epochs 3 --rate 0.001 \
		--start minispec/artifacts/$(MODEL)/draft.safetensors --feature-weight 0 --out build/draft-night/$(MODEL)
	$(PY) -m benchmarks held_out --model $(MODEL) --written build/draft-night/$(MODEL)-held-out \
		--drafts minispec/artifacts/$(MODEL)/draft.safetensors build/draft-night/$(MODEL)/draft.safetensors \
		--json build/draft-night/$(MODEL).json

# The theme tells of its maker's plans whenever it is loaded: NO_MKDOCS_2_WARNING silences it.
docs: $(DOCS)  ## build the book into build/book, to be opened without a network
	$(call need,mkdocs,docs)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "open build/book/index.html"

figures: $(INSTALLED)  ## draw the book's figures again, one of them from a run of some minutes
	$(PY) docs/figures.py

pocket: $(DEV)  ## train the pocket pair from nothing, into build/pocket
	$(MINISPEC) train pocket --out build/pocket

notebook: $(DOCS)  ## make the notebooks again: the walkthrough, and one a chapter
	$(call need,jupytext,docs)
	$(PY) docs/notebooks.py

lint: $(DEV)  ## check style, format and types
	$(call need,ruff,dev)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

clean:  ## remove .venv, the caches and build/, a draft trained there included
	rm -rf $(if $(PYTHON),,.venv) build dist *.egg-info
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list what make can do
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=/path/to/python   use that environment as it is, and make none"
	@echo "TORCH='$(TORCH)'   what pip is asked for if .venv has no PyTorch that will do"

# --- the environment --------------------------------------------------------------------------

wanted = minispec needs Python 3.11 or later, but $(1) is \
	$(or $(shell command -v $(1) >/dev/null && $(1) --version 2>&1),not there): \
	get a newer one, or make .venv with it yourself (python3.12 -m venv .venv)
check = $(if $(shell $(1) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null), \
	,$(error $(call wanted,$(1))))

python:
	@: $(call check,$(PY))

$(VENV)/bin/python:
	@: $(call check,python3)
	python3 -m venv $(VENV)

# PyTorch comes first, because what pip would take by itself is often a build of gigabytes. One
# that is there already is kept if setup.cfg allows it: pip, shown no source at all, then finds
# nothing to do. A TORCH that was asked for is installed all the same.
RANGE := $(shell sed -n 's/^ *\(torch[<>=].*\)/\1/p' setup.cfg)
$(VENV)/.torch: | $(VENV)/bin/python
	@: $(if $(wildcard $(PY)),$(call check,$(PY)))
ifeq ($(origin TORCH),file)
	@PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(PY) -m pip install --quiet --no-index --no-deps \
		'$(RANGE)' 2>/dev/null || { echo '$(PY) -m pip install $(TORCH)'; \
		$(PY) -m pip install $(TORCH); }
else
	$(PY) -m pip install $(TORCH)
endif
	@test -e $@ || touch $@

ifneq ($(origin TORCH),file)
$(VENV)/.torch: FORCE
endif

$(VENV)/.minispec: $(VENV)/.torch setup.cfg pyproject.toml
	$(PY) -m pip install --editable '.[report,train]'
	@touch $@

$(VENV)/.minispec-%: $(VENV)/.torch setup.cfg pyproject.toml
	$(PY) -m pip install --editable '.[$*]'
	@touch $@
