#!/usr/bin/env bash
# Builds the llama.cpp that the scripts beside this one measure and compare with lockstep: for this machine's own
# instructions, with the RPC backend, from the source distribution of llama-cpp-python on PyPI (it vendors llama.cpp
# whole).
#
#     bench/peers/install_llama_cpp.sh [FOLDER]      FOLDER: build/peers of this repository if not given
#
# Needs python3 with pip, cmake, ninja, a C++17 compiler. NICE=19 in the environment builds at the lowest priority, JOBS
# sets the compilers at once. 77 MB are fetched; 340 MB stay behind. About ten minutes of two cores.
set -euo pipefail

version=0.3.36
# Of llama_cpp_python-0.3.36.tar.gz on PyPI, taken on 2026-11-21.
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/build/peers}
jobs=${JOBS:-$(nproc)}
for tool in python3 cmake ninja sha256sum; do
  command -v "$tool" >/dev/null || { echo "install_llama_cpp.sh: needs $tool" >&2; exit 1; }
done
mkdir -p "$folder"
cd "$folder"

archive=llama_cpp_python-$version.tar.gz
if [[ ! -f $archive ]]; then
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version"
fi
echo "$sha256  $archive" | sha256sum --check --quiet
source=$folder/llama_cpp_python-$version/vendor/llama.cpp
[[ -f $source/CMakeLists.txt ]] || tar xzf "$archive"

build=$folder/llama.cpp-build
cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_RPC=ON \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >"$folder/configure.log" 2>&1 ||
  { tail -20 "$folder/configure.log" >&2; exit 1; }
nice -n "${NICE:-0}" cmake --build "$build" --parallel "$jobs" --target llama-bench ggml-rpc-server

bin=$build/bin
c++ -O1 -std=c++17 -I"$source/include" -I"$source/ggml/include" "$root/bench/peers/llama_logits.cc" \
  -o "$bin/llama_logits" -L"$bin" -lllama -lggml -lggml-base -Wl,-rpath,"$bin"

# What a result file names: the commit of llama.cpp that the source distribution holds, if it says so.
commit=$(git -C "$source" rev-parse HEAD 2>/dev/null || echo unknown)
if [[ $commit == "$(git -C "$root" rev-parse HEAD 2>/dev/null)" ]]; then commit=unknown; fi
cat >"$folder/llama.cpp.json" <<JSON
{"package": "llama-cpp-python $version", "commit": "$commit", "compiler": "$(c++ --version | head -1)"}
JSON
ls "$bin"/llama-bench "$bin"/ggml-rpc-server "$bin"/llama_logits
