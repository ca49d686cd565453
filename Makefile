# Needs Python 3.11+ and nothing else; everything lands in .venv and in your cache folder.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
EVENTS ?= 2000
BIN := .venv/bin
READY := .venv/.ready
# What is shown of pip's lines: downloads of 10 MB and more, the long last step, errors.
PROGRESS := Downloading [^ ]+ \(([0-9]{2,}(\.[0-9]+)? M|[0-9.]+ G)B\)|Installing collected packages|^(ERROR|error).*

help:  ## This list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## */\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(READY)  ## All tasks on real events and a real Kafka, watched live (TASKS=spam,image EVENTS=2000 FOREVER=1)
	@$(BIN)/consumer demo --events $(EVENTS) $(if $(TASKS),--tasks $(TASKS)) $(if $(FOREVER),--forever)

test: $(READY)  ## The whole test suite, on a real Kafka (ARGS="-k name" for a part)
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY)  ## Lint, format and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## Mend what can be mended by itself
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(READY)  ## Throughput, latency and memory beside the client's own limits
	@$(BIN)/consumer bench

clean:  ## Remove .venv and everything made by tools (the downloaded Kafka stays in your cache folder)
	@rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an interrupted installation is taken up again the next time.
$(READY): pyproject.toml requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing into .venv with $$($(PYTHON) --version) (the first time takes minutes: torch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "This Python cannot make virtual environments (on Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		-c requirements-dev.txt -e '.[dev]' 2>&1 | tee .venv/install.log \
		| { grep --line-buffered -oE '$(PROGRESS)' || true; } \
		|| { tail -n 20 .venv/install.log; exit 1; }
	@$(BIN)/consumer --version >/dev/null && touch $(READY)
