#!/usr/bin/env bash
# Prints the Python that drives the server in tests/system/test_serve.py: that of build/venv, made here with what
# tests/requirements.txt names. Where pip cannot install it, the system's, and the test is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/build/venv
if { [[ -x $venv/bin/pip ]] || python3 -m venv --clear "$venv" >&2; } &&
  "$venv/bin/pip" install -q -r tests/requirements.txt </dev/null >&2; then
  echo "$venv/bin/python"
else
  echo "test: pip cannot install tests/requirements.txt: system/test_serve will be skipped" >&2
  command -v python3
fi
