PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)

.PHONY: setup test lint types demo bench seeds site

setup:  # a virtual environment with everything for developers
	python3 -m venv .venv
	.venv/bin/pip install -e '.[dev]'

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

demo:  # the main job on the embedded teacher
	$(PYTHON) -m synthkd distill

bench:  # a small bench: three pipelines, half a minute each; a bench that is done only writes its tables
	$(PYTHON) -m synthkd bench --minutes 0.5 --pipelines synthkd,gan,noise --val-data demo:unseen --out runs/bench

seeds:  # the main job with three seeds; results in runs/
	for seed in 0 1 2; do $(PYTHON) -m synthkd distill --seed $$seed || exit; done

site:  # the documentation, in site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
