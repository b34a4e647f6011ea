PYTHON ?= python3
# A process a core, whole files each: most of a test's time is compilation, on one core.
WORKERS = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP = .venv/bin/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-full clean

demo: .venv/.run
	.venv/bin/python main.py sample --out demo \
	  --prompt "red apple" "smiling cat with heart-eyes" "penguin" "blue heart" \
	           "hamburger" "tiger face" "guitar" "blue heart with ribbon"

test: .venv/.test
	.venv/bin/python -m pytest $(WORKERS) -m "not full" tests

test-full: .venv/.test
	.venv/bin/python -m pytest $(WORKERS) tests

clean:
	rm -rf demo .pytest_cache build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "sdjax needs Python 3.11 or newer, $(PYTHON) is %d.%d: name another, as in: make demo PYTHON=python3.12" \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

# The stamps are newer than the requirements they stand for: nothing is installed twice.
.venv/.run: requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	touch $@

.venv/.test: requirements-test.txt requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt -r requirements-test.txt
	touch $@ .venv/.run
