# The verbs of this project. `make demo` and `make test` set everything up by themselves.

AGENT ?= scripted
BIN := .venv/bin

.PHONY: help install demo serve check test conformance faults cases fuzz stalls bench budgets lock clean

help: ## List the verbs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: ## Make .venv for working on Parallax
	@.ci/venv dev

demo: ## A team of agents turns a failing repository into a tested branch (AGENT=claude for a real one)
	@.ci/venv
	@$(BIN)/parallax demo --agent $(AGENT)

serve: ## Run the server
	@.ci/venv
	@$(BIN)/parallax serve

check: install ## Lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## Everything that must hold before a change lands
	@if command -v npm >/dev/null; then echo "the real CLIs, pinned:"; $(BIN)/python tests/conformance/install.py claude codex; fi
	$(BIN)/pytest -n 2 --dist loadfile

faults: install ## Kill the server at every bad moment, compare ledgers (FULL=1: more; RECORD=1: into docs/reliability.md)
	PARALLAX_FAULTS=$(if $(FULL),full,fast) $(if $(RECORD),PARALLAX_FAULTS_PAGE=docs/reliability.md) \
		$(BIN)/pytest tests/faults -n 2 --dist worksteal --timeout 3600
	PARALLAX_HISTORIES=200 $(BIN)/pytest tests/execution/test_history.py -k mutant --timeout 600

DOC ?= docs/agents.md
conformance: install ## The real CLIs, all of them (CLIS="gemini qwen" for some); writes the table in docs/agents.md
	$(BIN)/python tests/conformance/install.py $(CLIS)
	PARALLAX_CONFORMANCE="$(or $(CLIS),all)" PARALLAX_CONFORMANCE_DOC=$(DOC) PARALLAX_REQUIRE_REAL_CLIS=1 \
	  $(BIN)/pytest tests/conformance --timeout 900

cases: install ## The conformance cases of Prism
	$(BIN)/python -m parallax.prism cases tests/prism/cases.jsonl

fuzz: install ## Many generated programs through Prism
	PARALLAX_FUZZ=100000 $(BIN)/pytest tests/prism/test_fuzz.py --timeout 3600

stalls: install ## 200 agents that stop getting anywhere and 50 slow ones, into docs/agents.md (20 minutes)
	PARALLAX_STALLS=200 PARALLAX_STALL_LIMITS=3,30 $(BIN)/pytest -s tests/agents/test_stall_plays.py

bench: install ## What Prism, the gateway and the journal cost beside their limits
	$(BIN)/python bench/prism.py
	$(BIN)/python bench/workspaces.py
	$(BIN)/python bench/gateway.py
	$(BIN)/python bench/journal.py
	$(BIN)/python bench/fanout.py

budgets: install ## Twenty agents with random budgets at the gateway, against a provider that keeps its own books
	PARALLAX_BUDGET_CALLS=300 $(BIN)/pytest -q -s tests/execution/test_budgets_at_the_gateway.py --timeout 1800

lock: ## Write the locks anew from pyproject.toml (needs uv)
	uv lock
	uv export -q --no-header --no-dev --no-emit-project -o requirements.lock >/dev/null
	uv export -q --no-header --no-emit-project -o requirements-dev.lock >/dev/null

clean: ## Remove what the verbs made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
