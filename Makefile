# `make` alone lists what there is. Needs: make, Python 3.11, JDK 17, Maven. Nothing else prepared.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
UV := $(BIN)/uv
export UV_PROJECT_ENVIRONMENT := .venv
.DEFAULT_GOAL := help
.PHONY: help setup jars demo test check format bench prove clean

help: ## what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: .venv/.ready build/jars/.ready ## prepare .venv and the jars; after it .venv/bin/headwater works

.venv/.ready: pyproject.toml uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed and '$(PYTHON)' was not found; set PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(UV) || $(BIN)/python -m pip install -q --disable-pip-version-check 'uv==0.13.9'
	$(UV) sync -q --frozen --all-extras --inexact
	@touch $@

jars: build/jars/.ready ## build the join operator and resolve the broker's jars by Maven
JAVA_SOURCES := $(shell find stream/java runtime/kafka -name '*.java' -o -name pom.xml 2>/dev/null)
build/jars/.ready: $(JAVA_SOURCES)
	@command -v java >/dev/null && command -v mvn >/dev/null || { echo "JDK 17 and Maven are needed: 'java' or 'mvn' was not found on PATH"; exit 2; }
	mvn -q -B -ntp -f runtime/kafka/pom.xml package
	rm -rf stream/java/target  # Maven leaves in the jar what the sources do not have any more
	mvn -q -B -ntp -f stream/java/pom.xml package
	@touch $@

demo: setup ## the whole loop, live, for about a minute and a half; SOURCE=, DATA=, SECONDS_= to change it
	$(BIN)/headwater demo --seconds $(or $(SECONDS_),90) $(if $(SOURCE),--source $(SOURCE)) $(if $(DATA),--data $(DATA))

format: .venv/.ready ## rewrite the sources in the project's format, and docs/reference from them
	$(BIN)/ruff format .
	$(BIN)/ruff check -q --fix .
	$(BIN)/python docs/make_reference.py

check: setup ## format, lint, types, import rules and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -m "not slow and not kafka and not flink and not kill"

# Two workers: most tests wait for a broker or a JVM half of their time. A file stays with one of
# them, and the long ones come first (tests/conftest.py).
test: setup ## every test, with the real broker, Flink and RocksDB; under 15 minutes on 2 cores
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

bench: setup ## every benchmark, each as a ratio measured in one run
	$(BIN)/headwater bench all --json

# HEADWATER_STORE_KILLS, HEADWATER_STORE_EXAMPLES and HEADWATER_STORE_SEED (tests/knobs.py) turn the
# store's proofs up or down, here and in any run of pytest.
prove: setup ## the long counts: the same tests with their seeded cuts lifted
	HEADWATER_PROVE=1 $(BIN)/pytest -q --timeout=7200 -m "kill or slow"

clean: ## remove what setup and the tests made
	rm -rf .venv build .headwater .mypy_cache .ruff_cache .pytest_cache .hypothesis
