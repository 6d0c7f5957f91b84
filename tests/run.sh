#!/usr/bin/env bash
# Lint, types and every test, from a clean checkout: makes .venv unless PYTHON names an environment to use.
# With --soak, instead of the tests, 1,000 faults at random; other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    PYTHON=$PWD/.venv/bin/python
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt torch==2.13.0
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt -e ".[dev]"
    # only its tokenizer.model, the Llama-3 vocabulary, is used
    "$PYTHON" -m pip install -q --disable-pip-version-check -c cluster/constraints.txt --no-deps llama-models
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
case " $* " in *" --soak "*) set -- tests/test_soak.py tests/test_transaction.py "$@" ;; esac
"$PYTHON" -m pytest -q "$@"
