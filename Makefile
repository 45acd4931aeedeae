# One door for people and for CI. Needs Python 3.11 or newer and GNU make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-arm check format schema clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       train, export, measure and gate a small classifier; no download, under 3 minutes"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-arm   the runtime on ARM CPUs, emulated; downloads 200 MB once (docs/arm.md)"
	@echo "make check      format, lint, types, floors"
	@echo "make format     repair format and lint"
	@echo "make schema     write bench/report.schema.json again"
	@echo "make clean      remove .venv and everything that was generated"

install: $(STAMP)

# The stamp is written last: an interrupted installation is done again.
$(STAMP): pyproject.toml constraints.txt fast/pyproject.toml fast/setup.py $(wildcard fast/edgecls_fast/*.[cp]*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgecls is developed on Python 3.11 or newer: make PYTHON=python3.12")'
	rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# The types of TensorRT's API ask for TensorRT itself, several GB that no test needs.
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps tensorrt-stubs
ifneq ($(shell command -v cc),)
	$(BIN)/python -m pip install --disable-pip-version-check --force-reinstall --no-deps ./fast
else
	@echo >&2 '*** No C compiler (cc): edgecls-fast is NOT installed and its tests are skipped. sudo apt install gcc; make install'
endif
	touch $@

demo: $(STAMP)
	$(BIN)/edgecls demo

# Tests are many small models: threads of one inference only wait for each other.
test test-slow test-arm: export OMP_NUM_THREADS ?= 1

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Also among the slow tests, with more pictures; alone for continuous integration and for who changes what boards run.
test-arm: $(STAMP)
	$(BIN)/python -m pytest tests/test_arm.py -k "not ten_thousand"

# mypy and import-linter do not follow the mapping of an editable installation: they get a tree of links, and
# import-linter runs inside it, for it prefers the folder edgecls/ of the working directory.
FLOORS := export calibration models bench runtime

check: $(STAMP)
	rm -rf .dev && mkdir -p .dev/edgecls
	cd .dev/edgecls && ln -s ../../edgecls/* . && ln -s $(addprefix ../../,$(FLOORS)) .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=.dev $(BIN)/mypy -p edgecls
	MYPYPATH=.dev $(BIN)/mypy --config-file mypy-python310.ini --cache-dir .mypy_cache/python310
	cd .dev && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(STAMP)
	$(BIN)/python -m edgecls.bench.report_schema

clean:
	rm -rf $(VENV) .dev build dist *.egg-info fast/build fast/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .cache edgecls-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
