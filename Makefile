# make demo: pretrain on made images and see what was learned.   make test, make lint: the checks.
# VENV names the virtual environment that holds everything; it is made where it is missing. PYTEST takes its options.
VENV ?= .venv
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

bin := $(VENV)/bin
installed := $(VENV)/.installed

.PHONY: demo test lint

demo: $(installed)
	$(bin)/lodisc demo

test: $(installed)
	$(bin)/python -m pytest $(PYTEST)

lint: $(installed)
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

# One call installs all, so that one torch satisfies every package. A file marks it done, as pip is slow to say so.
$(installed): pyproject.toml
	@echo "Installing into $(VENV): a few minutes, and several GB for torch"
	@$(PYTHON) -m venv $(VENV)
	@$(bin)/python -m pip install --disable-pip-version-check --no-input --editable ".[dev]" \
		| grep --line-buffered --only-matching -E '^(Collecting [^ ]+|Installing collected packages|Successfully installed)'
	@touch $@
