#!/usr/bin/env bash
# Everything that a change must pass: the whole test suite in a release build, the parsers and the exchange under the
# address and undefined-behaviour sanitizers, the exchange under the thread sanitizer. About 15 minutes on two
# cores with an empty cache. Ends with one ctest over all three builds.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

deploy/install.sh
jobs=${LOCKSTEP_JOBS:-$(nproc)}

# Test programs by name; a sanitizer build makes only these.
asan_tests='^(runtime_base|runtime_text|runtime_weights|runtime_model_config|launcher|transport|collectives)_'
tsan_tests='^(runtime_base|transport|collectives_(group|bootstrap))_'
# These start the (release) program under test or count allocations: nothing to find for a sanitizer.
not_here='(launcher_session|commands_text|allocation)_test$'

# build <preset> <pattern>: builds the test programs whose names match.
build() {
  local preset=$1 pattern=$2
  cmake --preset "$preset" >/dev/null
  local targets
  targets=$(cmake --build "build/$preset" --target help | sed -n 's/^\([a-z0-9_]*_test\): phony$/\1/p' |
    grep -E "$pattern" | grep -vE "$not_here" || true)
  if [[ -z "$targets" ]]; then echo "test: no test program of $preset matches $pattern" >&2; exit 1; fi
  # shellcheck disable=SC2086
  cmake --build "build/$preset" -j "$jobs" --target $targets
}

cmake --preset release >/dev/null
cmake --build build/release -j "$jobs"
build asan "$asan_tests"
build tsan "$tsan_tests"

# One ctest over all builds: every test of the release build, and each sanitized program as one test.
all=$root/build/all-tests
mkdir -p "$all"
{
  echo "subdirs(\"$root/build/release\")"
  for preset in asan tsan; do
    for program in "$root/build/$preset"/tests/*_test; do
      name=$preset.$(basename "$program")
      echo "add_test([=[$name]=] \"$program\")"
      echo "set_tests_properties([=[$name]=] PROPERTIES TIMEOUT 900 ENVIRONMENT" \
        "\"LOCKSTEP_SOURCE_DIR=$root;LOCKSTEP_BINARY=$root/build/release/lockstep\")"
    done
  done
} >"$all/CTestTestfile.cmake"

# Sanitizer findings end the test program with an error.
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# gRPC and protobuf of Debian are not instrumented: without this they are reported by themselves.
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:second_deadlock_stack=1
exec ctest --test-dir "$all" --output-on-failure -j "$jobs"
