# The front door: `make demo` and `make test` need only Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo card results space test test-browser fuzz audit lint clean
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 8

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval,classes,datasets,train]'
	@touch $@

.venv/installed-space: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,space,browser]'
	@touch $@

demo: .venv/installed ## Restore examples/*.jpg and draw before and after
	$(BIN)/ddrm-jpeg restore examples/*.jpg --output build/demo --overwrite
	$(BIN)/python scripts/reports/comparison.py build/demo

card: .venv/installed-dev ## Fill model_card.md and README.md from docs/results.json and the prior's page
	$(BIN)/python scripts/reports/pages.py

results: .venv/installed-dev ## Make all numbers anew: PICTURES=FOLDER of sets (LIMIT=n of each, REPORTS="--only pages")
	$(BIN)/python scripts/reports $(PICTURES) $(if $(LIMIT),--limit $(LIMIT)) $(REPORTS)

space: .venv/installed-space ## Start the web page on this machine
	$(BIN)/python space/app.py

lint: .venv/installed-dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint ## Check style and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
	@echo "Left out: the tests of the web page, which need chromium (make test-browser)"

test-browser: .venv/installed-space ## Test the web page, in the chromium of this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser --numprocesses auto --dist worksteal

fuzz: .venv/installed-dev ## Read 20,000 broken files (FUZZ="--cases 1000 --seed 1" for others)
	$(BIN)/python scripts/fuzz.py $(FUZZ)

audit: ## Look the pinned dependencies up among known vulnerabilities
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean: ## Remove what make made
	rm -rf .venv build
