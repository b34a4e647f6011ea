PYTHON ?= python3
# A process a core, whole files each: most of a test's time is compilation, on one core.
WORKERS = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP = .venv/bin/pip install --quiet --disable-pip-version-check
# What needs no peer: the mathematics, networks, prompts, pictures, training, files, the commands.
# Adaptations, and these losses, are compared with PyTorch, diffusers and peft.
PEERS = --ignore=tests/training/adaptations --ignore=tests/training/recipes/test_tuning.py \
  --ignore=tests/evaluation/test_lpips.py --ignore=tests/training/objectives/test_adversary.py \
  --ignore=tests/training/objectives/test_pyramid.py --ignore=tests/data/test_canny.py \
  --ignore=tests/data/test_pose.py \
  --ignore-glob=tests/training/objectives/test_distillation*.py
OLDEST = tests/diffusion/test_losses.py tests/diffusion/test_sampling.py \
  tests/diffusion/test_schedules.py tests/data tests/evaluation \
  tests/models/test_convolution.py tests/pipeline/test_convert.py tests/text tests/training \
  tests/weights/test_manifest.py tests/test_main.py tests/test_memory.py

.PHONY: demo test test-full test-oldest bench bench-tpu clean

demo: .venv/.run
	.venv/bin/python main.py sample --out demo \
	  --prompt "red apple" "smiling cat with heart-eyes" "penguin" "blue heart" \
	           "hamburger" "tiger face" "guitar" "blue heart with ribbon"

test: .venv/.test
	.venv/bin/python -m pytest $(WORKERS) -m "not full" tests

test-full: .venv/.test test-oldest
	.venv/bin/python -m pytest $(WORKERS) tests

# The core with the oldest versions that pyproject.toml allows, without PyTorch and diffusers.
test-oldest: .venv-oldest/.test
	.venv-oldest/bin/python -m pytest $(WORKERS) -m "not full" $(PEERS) $(OLDEST)

# Beside their peers, one after another, on a machine that does nothing else: docs/benchmarks.md.
bench: .venv/.test
	for name in ddpm_vs_torch attention sampling_loop load loader clips few_bits; do \
	  .venv/bin/python -m benchmarks.$$name || exit 1; done

# For chips that are not here: needs libtpu in .venv.
bench-tpu: .venv/.test
	for name in pods tpu_memory; do .venv/bin/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf demo .pytest_cache build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "sdjax needs Python 3.11 or newer, $(PYTHON) is %d.%d: name another, as in: make demo PYTHON=python3.12" \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

# The stamps are newer than the requirements they stand for: nothing is installed twice. The package
# itself is installed as a link to this folder, so `import sdjax` works from everywhere.
.venv/.run: requirements.txt pyproject.toml setup.py | .venv/bin/python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -e .
	touch $@

.venv/.test: requirements-test.txt .venv/.run
	$(PIP) -r requirements.txt -r requirements-test.txt
	touch $@

.venv-oldest/.test: requirements-oldest.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-oldest
	$(PIP:.venv%=.venv-oldest%) -r requirements-oldest.txt pytest pytest-xdist
	touch $@
