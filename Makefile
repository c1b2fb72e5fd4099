# Everything runs in .venv; a target that needs the package depends on its install stamp, so a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPECHECK := build/typecheck/bertfast

.PHONY: help install demo test test-all test-oldest layout lint docs wheel bench note gpu sanitize clean

help:
	@echo "make demo      install into .venv, then train, fine-tune and report on text that Python ships"
	@echo "make test      install into .venv, then run the tests but for the slow ones"
	@echo "make test-all  the slow ones too: every member, mask and backend"
	@echo "make test-oldest  a part of them on the oldest PyTorch and libraries, in build/oldest"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation's site, into build/site"
	@echo "make wheel     this platform's wheel into build/wheels, tried where no compiler is"
	@echo "make bench     CPU benchmarks: JSON and plots under benchmarks/results, tables in docs/performance.md"
	@echo "make note      what pretraining changes: hours of measuring, resumable; DATA=DIR has the files; docs/note.md"
	@echo "make gpu       on a GPU machine, with its own python3: check, step, ops, tune, each in under 8 minutes"
	@echo "               PART=2 runs one of the four, RESULTS=DIR says where its results go"
	@echo "make sanitize  the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer"

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertfast needs Python 3.11 or newer; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# csrc and kernels are watched, so that a pull that changes the C++ rebuilds the extension.
$(STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/bindings/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@$(BIN)/python -c 'import torch, bertfast._C' 2>/dev/null || \
		echo "bertfast: no C++ extension (is g++ installed?): the reference backend serves, more slowly" >&2
	@touch $@

demo: install
	$(BIN)/bertfast demo

# Files stay whole: their tests share what one of them trains.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

# An environment of its own: several gigabytes, unless pip knows PyTorch's CPU builds.
test-oldest:
	$(PYTHON) tests/oldest.py

# mypy and mkdocstrings read no package_dir mapping: the installed layout as links is for them.
layout:
	@rm -rf $(TYPECHECK) && mkdir -p $(TYPECHECK)
	@ln -s $(CURDIR)/bertfast/* $(TYPECHECK)/ && ln -s $(CURDIR)/kernels $(TYPECHECK)/kernels

lint: install layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(dir $(TYPECHECK)) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p bertfast

# A broken link, a page left out or a reference that is not there fails it.
docs: install layout
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

# The wheel of this platform: checked, then tried where no compiler is.
wheel: install
	$(BIN)/python tests/wheel.py

bench: install
	$(BIN)/python -m benchmarks cpu

# Goes on where it was stopped; delete a part's file in benchmarks/note/results to measure it anew.
note: install
	$(BIN)/python -m benchmarks.note $(if $(DATA),--data "$(DATA)")

# A GPU machine brings its own PyTorch and Triton: nothing is installed there.
gpu:
	$(PYTHON) -m benchmarks gpu $(if $(PART),--part $(PART)) $(if $(RESULTS),--results "$(RESULTS)")

sanitize: install
	$(BIN)/python tests/sanitize.py

clean:
	rm -rf build dist *.egg-info bertfast/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
