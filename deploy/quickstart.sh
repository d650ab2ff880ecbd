#!/usr/bin/env bash
# From a bare Debian 12 to an answer: installs, builds, and lets two ranks answer a prompt together.
#
#     deploy/quickstart.sh ["your question"]
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/install.sh
cmake --preset release
cmake --build --preset release --target lockstep

# Open MPI counts cores as slots, and refuses two ranks on one core with two threads without --oversubscribe.
flags=(--oversubscribe -n 2)
if [[ $(id -u) -eq 0 ]]; then flags+=(--allow-run-as-root); fi
echo
echo "+ mpirun ${flags[*]} build/release/lockstep run --model models/tiny ..."
mpirun "${flags[@]}" build/release/lockstep run --model models/tiny "${1:-What is the capital of France?}"
