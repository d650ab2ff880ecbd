#!/usr/bin/env bash
# Everything that a change must pass: the test suite in a release build, but for three tests of bench's Python, which
# test-full.sh has; what reads foreign bytes, links and exchanges again under the address and undefined-behaviour
# sanitizers; what threads share below the model again under the thread sanitizer. Half an hour on two cores with an
# empty cache. Ends with one ctest over all three builds.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

deploy/install.sh
jobs=${LOCKSTEP_JOBS:-$(nproc)}

# Test programs by name; a sanitizer build makes only these. What the launcher parses (the cluster YAML, lists of tokens,
# ranges) has fuzz targets under the same sanitizers in test-full.sh.
asan_tests='^(runtime_base|runtime_text|runtime_weights|runtime_model_(config|bad_checkpoints)|runtime_http'
asan_tests+='|transport|collectives)_'
tsan_tests='^(runtime_base|runtime_http|transport|collectives_(group|bootstrap|fault))_'
# Tests that count allocations have nothing for a sanitizer to find. NCCL's waits for a minute; test-full.sh has it, and
# links that break under the address sanitizer: here the thread sanitizer watches those.
not_here='(allocation|nccl)_test$'
# Nor has the address sanitizer much to find in what reads nothing foreign and moves nothing between ranks.
not_in_asan='(collectives_(fault|choose)|runtime_base_(digest|lines|log_event|gguf_write)'
not_in_asan+='|runtime_weights_(partition|read_ahead|transcode|transcode_part))_test$'

# build <preset> <pattern> [without]: builds the test programs whose names match, and leaves their names in $built.
build() {
  local preset=$1 pattern=$2 without="$not_here|${3:-$not_here}"
  cmake --preset "$preset" -DLOCKSTEP_QUICK=ON >/dev/null
  built=$(cmake --build "build/$preset" --target help | sed -n 's/^\([a-z0-9_]*_test\): phony$/\1/p' |
    grep -E "$pattern" | grep -vE "$without" || true)
  if [[ -z "$built" ]]; then echo "test: no test program of $preset matches $pattern" >&2; exit 1; fi
  # shellcheck disable=SC2086
  cmake --build "build/$preset" -j "$jobs" --target $built
}

# add_tests <preset> [filter]: each program of $built as one test.
add_tests() {
  local name
  for name in $built; do
    echo "add_test([=[$1.$name]=] \"$root/build/$1/tests/$name\")"
    # Some last minutes: COST starts them first, so that none is left alone at the end.
    echo "set_tests_properties([=[$1.$name]=] PROPERTIES TIMEOUT 900 COST 500 LABELS $1 ENVIRONMENT" \
      "\"LOCKSTEP_SOURCE_DIR=$root;LOCKSTEP_BINARY=$root/build/release/lockstep;GTEST_FILTER=${2:-*}\")"
  done
}

# One ctest over all builds: every test of the release build, and each sanitized program as one test.
all=$root/build/all-tests
mkdir -p "$all"
# Whole sanitizers, in kernels too, take minutes to compile: test-full.sh has them.
cmake --preset release -DLOCKSTEP_QUICK=ON -DLOCKSTEP_PYTHON="$(deploy/test_python.sh)" >/dev/null
cmake --build build/release -j "$jobs"
echo "subdirs(\"$root/build/release\")" >"$all/CTestTestfile.cmake"
build asan "$asan_tests" "$not_in_asan"
# Of many ranks the release build has them all, and test-full.sh every build.
add_tests asan '-Groups/*5:Groups/*6:Groups/*7:Groups/*8' >>"$all/CTestTestfile.cmake"
build tsan "$tsan_tests"
# Megabytes in many chunks, many exchanges and many ranks take the thread sanitizer long, and slots in place differ from
# others by one copy: some of each here, all in test-full.sh.
add_tests tsan '-*AddsLongSlotsInChunks/sim*:*sim_in_place*:*/LongRun.*:Groups/*4:*/*5:*/*6:*/*7:*/*8' \
  >>"$all/CTestTestfile.cmake"

# The preset has the sanitizers' options. Unlike that of asan it unwinds fast, up to eight times the speed: none of these
# tests starts Open MPI, whose leaks need whole stacks to be recognised.
# One more at a time than there are cores: many tests wait.
exec ctest --preset all-tests -j $((jobs + 1)) -E '^bench/test_(checkpoints|measuring|modes)$'
