#!/bin/sh
# Installs the peers of bench_peers and bench_pictures, each into an environment of its own: tests/benchmarks/install_peers.sh [FOLDER, default .venv-peers]
# Those with a model get the torch, transformers and numpy that raylens is tested with, some 2 GB each, downloads shared; seaborn
# its matplotlib and numpy.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-.venv-peers}
torch=$(sed -n 's/^torch==//p' infra/constraints.txt)
shared=$(grep -E '^(torch|transformers|numpy|tokenizers|huggingface_hub|accelerate)==' infra/constraints.txt)
for requirements in tests/benchmarks/peers/requirements/*.txt; do
    venv=$folder/$(basename "$requirements" .txt)
    echo "installing $venv"
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
    if [ "$(basename "$requirements")" = seaborn.txt ]; then
        # shellcheck disable=SC2046  a word is a requirement
        $pip $(grep -E '^(matplotlib|numpy|pandas)==' infra/constraints.txt) --requirement "$requirements"
        continue
    fi
    # before all else, and the CPU build: the default one on Linux brings gigabytes of CUDA
    if [ "$(uname -s)" = Linux ]; then
        $pip "torch==$torch+cpu" 2>/dev/null || $pip "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
    else
        $pip "torch==$torch"
    fi
    # shellcheck disable=SC2086  a word is a requirement
    $pip $shared --requirement "$requirements"
done
