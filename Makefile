# `make demo` and `make test` work on a fresh machine with Python 3.11+, make and a compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
comma  := ,
UNAME  := $(shell uname -s)
# Linux needs a backend for mlx; Apple Silicon's is in the wheel. `make BACKEND=cuda13 setup` for a GPU.
BACKEND ?= $(if $(filter Linux,$(UNAME)),cpu,)
EXTRAS := dev$(if $(BACKEND),$(comma)$(BACKEND))

.PHONY: setup demo test test-all check format protos clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(STAMP) ## virtual environment with everything pinned

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Optiq needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup ## fetch the embedded model and run the whole loop
	$(BIN)/optiq demo

test: setup check ## linters and the test suite
	$(BIN)/python -m pytest

check: setup ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test-all: setup ## everything, with the slow tests and the PEFT referee
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS),referee]'
	$(BIN)/python -m pytest -m ''

format: setup ## format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup ## regenerate the protobuf code and its reference page beside the sources
	cd protos && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
	  $$(find optiq_protos -name '*.proto' | sort)
	$(BIN)/python protos/reference.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
