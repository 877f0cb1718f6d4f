# Each target makes .venv first, if it is missing or stale. ARGS goes to pytest: make test ARGS=tests/data

.PHONY: env test test-oldest-torch test-gpu matrix check clean help

PYTHON_IN_ENV := .venv/bin/python
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile
# what stands on torch's own engines, formats and private names; three minutes of two cores
CORE_TESTS := tests/test_torch_names.py tests/parallel tests/launching \
	tests/kernels/test_compiled.py tests/kernels/test_attention.py tests/model/test_gpt.py \
	tests/model/test_recompute.py tests/optimizer/test_optimizer.py tests/training/test_gradient_accumulation.py \
	tests/checkpoint/test_save_load.py tests/inference/test_layouts.py

env: ## make .venv, which the others do too
	@bash tools/make_env.sh

test: env ## run every test that needs no GPU; ARGS=tests/data for one folder
	$(PYTHON_IN_ENV) -m pytest $(IN_PARALLEL) $(ARGS)

test-oldest-torch: env ## run the core of the tests with the oldest torch that setup.py allows, in .venv-oldest-torch
	@bash tools/make_oldest_env.sh
	.venv-oldest-torch/bin/python -m pytest $(IN_PARALLEL) $(or $(ARGS),$(CORE_TESTS))

matrix: env ## all of the proof of which test holds a part: every layout trains the same model; ARGS="--matrix-seed 7" for other numbers
	$(PYTHON_IN_ENV) -m pytest tests/training/test_matrix.py tests/training/test_mutations.py --matrix full $(ARGS)

test-gpu: env ## run the tests that need a GPU
	$(PYTHON_IN_ENV) -m pytest -m gpu -rs $(ARGS)

check: env ## ruff, ruff format, mypy
	$(PYTHON_IN_ENV) -m ruff check .
	$(PYTHON_IN_ENV) -m ruff format --check .
	$(PYTHON_IN_ENV) -m mypy

clean: ## remove the environments and what was built; runs/ and data/ stay
	rm -rf .venv .venv.lock .venv-oldest-torch install.log build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find megatron tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
	find megatron -name '*.so' -delete

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)
