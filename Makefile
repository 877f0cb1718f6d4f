# Each target makes .venv first, if it is missing or stale. ARGS goes to pytest: make test ARGS=tests/data

.PHONY: env test test-gpu matrix check clean help

PYTHON_IN_ENV := .venv/bin/python

env: ## make .venv, which the others do too
	@bash tools/make_env.sh

test: env ## run every test that needs no GPU; ARGS=tests/data for one folder
	$(PYTHON_IN_ENV) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

matrix: env ## all of the proof of which test holds a part: every layout trains the same model; ARGS="--matrix-seed 7" for other numbers
	$(PYTHON_IN_ENV) -m pytest tests/training/test_matrix.py tests/training/test_mutations.py --matrix full $(ARGS)

test-gpu: env ## run the tests that need a GPU
	$(PYTHON_IN_ENV) -m pytest -m gpu -rs $(ARGS)

check: env ## ruff, ruff format, mypy
	$(PYTHON_IN_ENV) -m ruff check .
	$(PYTHON_IN_ENV) -m ruff format --check .
	$(PYTHON_IN_ENV) -m mypy

clean: ## remove .venv and what was built; runs/ and data/ stay
	rm -rf .venv .venv.lock install.log build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find megatron tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	find megatron -name '*.so' -delete

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)
