# make demo: install and lens sixteen prompts.   make test: install and run every check that CI runs.   make soak: break a long
# run again and again.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check fix clean soak lowest

$(VENV)/installed: pyproject.toml infra/constraints.txt infra/install.sh
	@echo "installing into $(VENV); the first time takes a few minutes"
	@infra/install.sh $(VENV)

demo: $(VENV)/installed
	$(BIN)/raylens demo

test: $(VENV)/installed check
	$(BIN)/pytest -n 3 --dist worksteal --durations 40 -m "not alone"
	$(BIN)/pytest -m alone

# Every test with the oldest version of each package that pyproject.toml allows
lowest:
	infra/install.sh .venv-lowest infra/lowest.txt
	.venv-lowest/bin/pytest -n 3 --dist worksteal -m "not alone"

# Three hundred faults over three thousand prompts, for about an hour: make soak SOAK="--seed 1 --server redis7"
soak: $(VENV)/installed
	$(BIN)/python -m tests.kill.soak $(SOAK)

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p raylens
	$(BIN)/lint-imports

fix: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-lowest raylens-demo raylens-store
