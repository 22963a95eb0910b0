# make train · make test · make lab · make docs · make bench: each sets up what it needs in .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A thread of torch that has nothing to do sleeps, and leaves its core to the loader's workers
export OMP_WAIT_POLICY ?= passive

.PHONY: help train test lab docs bench readme outputs
help:
	@echo 'make train   train a model on the best data at hand (ARGS="--epochs 20" passes options on; ARGS=--help lists them)'
	@echo 'make test    run every chapter and every test (ARGS=losses: those with this word in their names)'
	@echo 'make lab     open the chapters in JupyterLab'
	@echo 'make outputs run NB=nbs/06_losses.ipynb and store what it prints'
	@echo 'make readme  write README.md from nbs/index.ipynb'
	@echo 'make docs    build the documentation site (needs Quarto)'
	@echo 'make bench   measure against fastai and PyTorch (installs them in .venv-bench; DATA=folder in Imagenette layout)'

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10) and f"scratchai needs Python 3.10 or later, and $(PYTHON) is {sys.version.split()[0]}: name another with make PYTHON=python3.12")'
	@echo 'First use, one to four minutes: making .venv …'
	@$(PYTHON) -m venv .venv
	@touch $@
.venv/run: .venv/made settings.ini setup.py pyproject.toml constraints.txt
	@echo '… installing PyTorch, which is the longest part …'
	@$(PIP) torch
	@echo '… installing scratchai and what it needs …'
	@$(PIP) --editable .
	@touch $@
.venv/dev: .venv/run
	@echo '… installing what chapters and tests use besides: nbdev, pytest, pandas, scikit-learn, tensorboard …'
	@$(PIP) --editable '.[dev]'
	@echo '… done.'
	@touch $@
.venv/lab: .venv/dev
	@echo '… installing JupyterLab …'
	@$(PIP) --editable '.[lab]'
	@touch $@

train: .venv/run
	@$(BIN)/scratchai-train $(ARGS)
test: .venv/dev
	@$(BIN)/python tests/run.py $(ARGS)
lab: .venv/lab
	@$(BIN)/jupyter lab $(ARGS) nbs
readme: .venv/dev
	@$(BIN)/python tests/readme.py --write
outputs: .venv/dev
	@$(BIN)/python tests/outputs.py $(NB)
docs: .venv/dev
	@command -v quarto >/dev/null || { echo 'The documentation site is built by Quarto, which is not installed: see https://quarto.org, then run make docs again.'; exit 2; }
	@$(BIN)/nbdev-docs

.venv-bench/made: settings.ini constraints.txt benchmarks/requirements.txt
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . -r benchmarks/requirements.txt
	@touch $@
bench: .venv-bench/made
	@.venv-bench/bin/python benchmarks/run.py $(DATA)
