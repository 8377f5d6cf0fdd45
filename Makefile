# make benchmark   compare Medusa, Hydra, EAGLE-3 and EntMTP on the bundled model, through a Ray job (PROFILE=standard: more)
# make check       lint, types, import floors and unit tests: what to run while working
# make test        the same with more examples per property, and end-to-end and integration tests
# make test-slow   what takes long: every point at which a fault may come, fuzzing, killing, large samples
# make performance measure this machine again and render docs/performance.md (SET=cuda on a GPU)
# make gpu         what this library does on a machine with one NVIDIA GPU, in ten minutes (ARGS="--dry" without one)
# make study       the paper's experiment on this machine, and docs/study.md from it (hours on a small machine)
# make serve       the bundled model behind an OpenAI-compatible API on http://127.0.0.1:8000 (ARGS="--port 9000")
# make audit       known vulnerabilities of the tested set of dependencies
# make clean       remove what was built; results stay
VENV ?= .venv
PROFILE ?= quick
SET ?= cpu
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BIN := $(VENV)/bin
# Where nothing can be installed, the Python that has PyTorch runs the checkout as it is.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

# Tests are compiled once, as pytest rewrites their assertions, and not again in every process of every run.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: benchmark check lint test test-slow performance gpu study serve audit clean

benchmark: $(INSTALLED)
	$(BIN)/python jobs/local.py jobs/benchmark.py --profile $(PROFILE) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest tests/unit $(PARALLEL) --hypothesis-profile dev $(ARGS)

test: lint
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

performance: $(INSTALLED)
	$(BIN)/python -m benchmarks.performance --run $(SET)

gpu:
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

study: $(INSTALLED)
	$(BIN)/python -m benchmarks.origin
	$(BIN)/python jobs/local.py jobs/benchmark.py --profile study --results results/study $(ARGS)
	$(BIN)/python jobs/local.py jobs/benchmark.py --profile study --results results/closer --prompts 20 --max-new-tokens 96 \
		--arm autoregressive --arm hydra-best --arm entmtp-dynamic --arm random $(ARGS)
	$(BIN)/python jobs/local.py jobs/benchmark.py --profile study-lossless --results results/study-lossless $(ARGS)
	$(BIN)/python jobs/local.py jobs/benchmark.py --profile study-typical --results results/study-typical $(ARGS)
	$(BIN)/python -m benchmarks.speedups --results results/closer --record docs/study/speedups.json
	$(BIN)/python -m benchmarks.signals --output results/signals --record docs/study/signals.json
	$(BIN)/python -m benchmarks.predict --profile flat --output results/heads --prompts 12 --record docs/study/predict-flat.json
	$(BIN)/python -m benchmarks.predict --profile gpu-like --output results/heads --prompts 12 --record docs/study/predict-gpu-like.json
	$(BIN)/python -m benchmarks.predict --profile xeon-2-cores --output results/heads --prompts 12 --record docs/study/predict-xeon-2-cores.json
	$(BIN)/python -m benchmarks.study

serve: $(INSTALLED)
	$(BIN)/entmtp serve $(ARGS)

audit: $(INSTALLED)
	$(BIN)/python -m pip install --progress-bar off pip-audit
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	test ! -e $(INSTALLED) || rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[benchmark,serve,dev]'
	touch $@
