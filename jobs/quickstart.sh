#!/usr/bin/env bash
# Makes a virtual environment and a tiny random model, scores a sample of real pairs, mines pairs and writes a report.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
PATH=$PWD/.venv/bin:$PATH
echo "installing into .venv ..."
python -m pip install -q --disable-pip-version-check -c cluster/constraints.txt torch==2.13.0
python -m pip install -q --disable-pip-version-check -c cluster/constraints.txt -e .

out=quickstart-out
rm -rf "$out"
armo-ray tiny-model "$out/model"
armo-ray score jobs/quickstart.toml --model "$out/model" --output "$out/scored"
armo-ray verify "$out/scored"
armo-ray mine "$out/scored" --output "$out/pairs" --keep id
python -m jobs.show "$out/scored" "$out/pairs"
armo-ray report "$out/scored"
