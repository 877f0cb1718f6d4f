# Each target makes .venv first, if it is missing or stale. ARGS goes to pytest: make test ARGS=tests/data

.PHONY: env test test-gpu check clean

PYTHON_IN_ENV := .venv/bin/python

env:
	@bash tools/make_env.sh

test: env
	$(PYTHON_IN_ENV) -m pytest $(ARGS)

test-gpu: env
	$(PYTHON_IN_ENV) -m pytest -m gpu -rs $(ARGS)

check: env
	$(PYTHON_IN_ENV) -m ruff check .
	$(PYTHON_IN_ENV) -m ruff format --check .
	$(PYTHON_IN_ENV) -m mypy

clean:
	rm -rf .venv .venv.lock install.log build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find megatron tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	find megatron -name '*.so' -delete
