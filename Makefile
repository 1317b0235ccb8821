# The front door. `make` alone prints what there is.
STUDY ?= quick
JOBS ?= 1
PYTHON ?= python3
# Where the packages lie; elsewhere for a checkout that cannot be written: make report VENV=/another/folder
VENV := $(or $(CONVMIXER_VENV),.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCE := lib notebooks tests
ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): give a folder without a space in its name)
endif
# A study that is named as if it were a target, or with a small `study`, would be `quick` instead.
ifneq ($(filter report runs submit status,$(MAKECMDGOALS)),)
ifneq ($(study)$(filter $(patsubst params/studies/%.yaml,%,$(wildcard params/studies/*.yaml)),$(MAKECMDGOALS)),)
$(error name the study as in: make report STUDY=laptop)
endif
endif

# What the shell holds for other Pythons and their figures is not for ours, and the lib that runs is this folder's.
unexport $(filter PYTHON% MPLBACKEND MATPLOTLIBRC,$(.VARIABLES))
export PYTHONPATH := $(CURDIR)

# The programs of a .venv that was copied or moved with its folder are the old folder's, and one whose Python is gone or
# another version by now has no packages: it is made anew. One that is a link is somebody's own choice.
ifneq ($(shell [ -L $(VENV) ] || [ ! -e $(READY) ] || { case $(VENV) in (/*) cd /;; esac; here=$$(pwd -P); \
               grep -qF "$${here%/}/$(patsubst /%,%,$(BIN))/" $(BIN)/papermill && $(BIN)/python -Ic 'import yaml'; \
               } 2>/dev/null || { mv $(READY) $(VENV)/.setting-up; echo old; }),)
$(info $(VENV) was made for another folder or another Python: it is set up anew)
endif

.DELETE_ON_ERROR:
.PHONY: help setup data report runs submit status import predict play bench verify check test test-faults test-page test-slurm readme lab clean

help:
	@echo "make report [STUDY=quick] [JOBS=1]  train what is missing of a study, build reports/STUDY/index.html"
	@echo "make runs   [STUDY=quick] [JOBS=1]  only train; stopped runs go on, finished ones are skipped"
	@echo "make submit [STUDY=quick]           leave the runs to SLURM; [PARTITION= GPUS= CPUS= TIME= ACCOUNT=]"
	@echo "make status [STUDY=quick]           how far each run of a study is, and its place in the queue"
	@echo "make import FROM=folder             take finished runs from another machine's or clone's reports/"
	@echo "make predict IMAGE=cat.jpg          what a published network sees in a picture; [RUN=study/run] chooses which"
	@echo "make play                           reports/published/play.html: published networks in a browser"
	@echo "make check                          form and types: ruff, mypy, notebooks without outputs; seconds"
	@echo "make test                           the tests"
	@echo "make test-faults                    kills, full disks, bad input: a line a fault; half an hour"
	@echo "make test-page                      the pages in a headless browser, which it finds or installs"
	@echo "make test-slurm                     make submit, on a SLURM of this machine that it starts for that"
	@echo "make bench                          how fast training is here, against plain PyTorch"
	@echo "make verify                         do the published weights, records, tables and README agree? minutes"
	@echo "make lab                            JupyterLab, with the right kernel"
	@echo "make setup                          .venv with the pinned packages (the others do it when needed); VENV=folder elsewhere"
	@echo "make data                           fetch and verify CIFAR-10 (likewise)"
	@echo "make clean                          caches and executed notebooks; never a record or a checkpoint"
	@echo "Studies: $(notdir $(basename $(wildcard params/studies/*.yaml)))"

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: give PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -I lib/venv.py $(VENV)
	@touch $@

data: $(READY)
	@$(BIN)/python -m lib.data.download

runs: $(READY)
	@$(BIN)/python -m lib.runs $(STUDY) --jobs $(JOBS)

# The page is built with what there is, also when a run failed; then make fails too, every time until it is mended.
report: $(READY)
	@failed=0; \
	$(BIN)/python -m lib.runs $(STUDY) --jobs $(JOBS) || failed=$$?; \
	[ $$failed -ge 2 ] || $(BIN)/python -m lib.report $(STUDY) || failed=$$?; \
	exit $$failed

# PARTITION, GPUS, CPUS, TIME and ACCOUNT, given here or in the environment, reach it as they are (lib/runs/cluster.py).
submit: $(READY)
	@$(BIN)/python -m lib.runs $(STUDY) --submit

status: $(READY)
	@$(BIN)/python -m lib.runs $(STUDY) --status

# make puts FROM, IMAGE and RUN into the environment; through it any file name arrives whole.
import: export FROM ?=
import: $(READY)
	@$(BIN)/python -m lib.runs.collect "$$FROM"

predict: export IMAGE ?=
predict: export RUN ?=
predict: $(READY)
	@$(BIN)/python -m lib.predict --run "$$RUN" "$$IMAGE"

play: $(READY) data
	@$(BIN)/python -m lib.report.play.build

verify: $(READY) data
	@$(BIN)/python -m lib.verify

check: $(READY)
	@$(BIN)/ruff check $(SOURCE)
	@$(BIN)/ruff format --check $(SOURCE)
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb
	@$(BIN)/mypy

# Files side by side: most of a test of the whole pipeline is one core's imports.
test: $(READY) data
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-faults: $(READY) data
	@$(BIN)/python tests/faults

# No package is needed for it: the browser is driven through a pipe (tests/page/browser.py).
test-page: $(READY) data
	@$(BIN)/python tests/page

# Debian's slurm-wlm and munge, which it finds or installs, for as long as it takes; minutes.
test-slurm: $(READY) data
	@$(BIN)/python tests/slurm

bench: $(READY)
	@$(BIN)/python -m lib.runs.bench

# Published records stand apart, so that a clone trains its own: make report readme CONVMIXER_REPORTS=reports/published
readme: $(READY) data
	@CONVMIXER_REPORTS=reports/published $(BIN)/python -m lib.report.readme
	@CONVMIXER_REPORTS=reports/published $(BIN)/python -m lib.report --front
	@$(BIN)/python -m lib.report.cards
	@$(BIN)/python -m lib.report.play.build

# In a container one is often root, which Jupyter refuses unless told.
lab: $(READY)
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. notebooks/train.ipynb

clean:
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	@find lib tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@[ ! -d reports ] || find reports -name '*.ipynb' -delete
