#!/bin/bash
# All there is to see on a machine with a GPU and CUDA 13, in one call: builds, holds the kernels against `ref` on the
# device itself, looks for races and stray accesses, and times products. Ends with 1 if anything failed; every part runs.
#
#     deploy/check_cuda.sh [cuda:0]
set -u
cd "$(dirname "$0")/.."
device=${1:-cuda:0}
build=build/release
tests=(contract attention mla)
failed=0

part() {
  echo "== $*"
  "$@" || { failed=1; echo "== FAILED: $*"; }
}

nvidia-smi || echo "no nvidia-smi"
cmake --preset release >/dev/null || exit 1
grep -q '^LOCKSTEP_NVCC:.*nvcc$' "$build/CMakeCache.txt" || { echo "configured without nvcc (docs/cuda.md)"; exit 1; }
targets=("${tests[@]/#/runtime_kernels_}")
cmake --build "$build" --target lockstep "${targets[@]/%/_test}" || exit 1
name=${device/:/_}
for test in "${tests[@]}"; do
  program=$build/tests/runtime_kernels_${test}_test
  part "$program" --gtest_filter="*$name*" --gtest_brief=1
done
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    part compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$build/tests/runtime_kernels_contract_test" --gtest_filter="*$name*" --gtest_brief=1
  done
fi
part "$build/lockstep" bench kernels --device "$device" --formats bf16,fp8,q8_0,q4_0,q4_k,q6_k,nvfp4 --rows 1,4,8,64
exit "$failed"
