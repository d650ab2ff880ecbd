#!/usr/bin/env bash
# Fetches the sources of xgrammar (Apache-2.0), which keeps structured output to its grammar: the build compiles them
# if they are in build/packages of this repository. From the source distribution on PyPI, since Debian has no package; pip's
# configuration says where that is. Safe to run again. 3 MB are fetched.
#
#     deploy/install_xgrammar.sh
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.2.9 # cmake/packages.cmake names it too
# Of xgrammar-0.2.9.tar.gz on PyPI, taken on 2026-11-28.
sha256=87b466bca2475e29bb0323abc62c6c33cbcbcff47e5fb800a3e2099ac9620b90

mkdir -p build/packages
cd build/packages
if [[ -f xgrammar-$version/include/xgrammar/xgrammar.h ]]; then exit 0; fi
archive=xgrammar-$version.tar.gz
if ! sha256sum --check --status <<<"$sha256  $archive" 2>/dev/null; then
  rm -f "$archive"
  # A Debian without pip has one in every virtual environment.
  python=${PYTHON:-python3}
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv pip
    python=pip/bin/python
  fi
  # With the hash pip refuses another file before it unpacks it and asks it for its metadata.
  echo "xgrammar==$version --hash=sha256:$sha256" >requirements.txt
  "$python" -m pip download --quiet --no-deps --no-binary xgrammar --require-hashes -r requirements.txt </dev/null
  sha256sum --check --quiet <<<"$sha256  $archive"
fi
# Renamed when it is whole.
rm -rf unpacked && mkdir unpacked
tar xzf "$archive" -C unpacked \
  "xgrammar-$version"/{LICENSE,NOTICE,include,cpp,3rdparty/picojson,3rdparty/dlpack/include}
mv "unpacked/xgrammar-$version" .
rm -rf unpacked pip requirements.txt
