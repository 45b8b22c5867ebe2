# Two commands set everything up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
# The embedded model is too small for more threads than one, and tests run on two processes.
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-slow lint docs dist install audit hashes

quickstart: install
	$(BIN)/bayeslora fit -c quickstart --trainer.default_root_dir $(RUN) --overwrite
	$(BIN)/bayeslora test -c quickstart --trainer.default_root_dir $(RUN)

# Every line of the package; below 15 minutes on two cores.
test: install
	$(BIN)/python -m pytest -n 2 -m "not slow and not real"

# What takes longer: kills, several processes, the pretend GPU, the wheel, benchmarks, and every method on real weights.
test-slow: install
	$(BIN)/python -m pytest -n 2 -m "slow or real"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/docs. A link that leads nowhere is an error; tutorials run, and are kept in build/ until they change.
docs: install
	$(BIN)/sphinx-build -n -W --keep-going docs build/docs

# The sdist, and the wheel that is made of it.
dist: install
	$(BIN)/python -m build --no-isolation --outdir dist

# Known vulnerabilities of the pinned versions; asks the package index. In an environment of its own, as the next one is.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# The pins with the hashes of their files. torch is left out: it comes from the index that has the machine's variant.
hashes:
	$(PYTHON) -m venv build/hashes
	build/hashes/bin/python -m pip install --quiet uv==0.13.9
	grep -v '^torch==' constraints.txt > build/pins.txt
	build/hashes/bin/uv pip compile build/pins.txt --no-deps --generate-hashes --no-annotate --python-version 3.11.9 \
		--custom-compile-command "make hashes" --quiet --output-file constraints-hashed.txt

install: $(VENV)/.installed

# pip reads constraints.txt so that a machine without a GPU gets the tested versions and nothing newer.
$(VENV)/.installed: pyproject.toml constraints.txt tests/peers.txt tests/real.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/peers.txt --requirement tests/real.txt
	touch $@
