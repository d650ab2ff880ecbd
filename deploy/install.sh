#!/usr/bin/env bash
# Installs what lockstep needs to be built, run and tested on Debian 12 (or Ubuntu with the same packages).
# Safe to run again: it does nothing when everything is there.
#
#     deploy/install.sh          build, run, test
#     deploy/install.sh --full   also what deploy/test-full.sh needs (clang, ARM cross build, qemu, Chromium)
set -euo pipefail

# Debian 12 has 1.74 under the plain name, too old for Beast's use here; later systems have newer ones.
boost=libboost-dev
if grep -q '^VERSION_CODENAME=bookworm' /etc/os-release 2>/dev/null; then boost=libboost1.81-dev; fi
packages=(
  # Build
  g++ cmake ninja-build ccache pkg-config git ca-certificates
  protobuf-compiler protobuf-compiler-grpc
  # Libraries
  libgrpc++-dev libprotobuf-dev libabsl-dev libspdlog-dev libcli11-dev libyaml-cpp-dev nlohmann-json3-dev
  libpcre2-dev libxxhash-dev libssl-dev libcurl4-openssl-dev "$boost" libopenmpi-dev libpmix-dev
  libibverbs-dev
  # Run and test
  openmpi-bin iproute2 ibverbs-providers libgtest-dev libgmock-dev clang-format python3 python3-venv
)
# A guest machine with an RDMA device, for tests/rdma.
if [[ $(dpkg --print-architecture) == amd64 ]]; then packages+=(qemu-system-x86 busybox-static perftest); fi
if [[ "${1:-}" == "--full" ]]; then
  packages+=(clang-14 libclang-rt-14-dev g++-aarch64-linux-gnu qemu-user-static chromium fonts-dejavu-core
    openssh-server)
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ "$state" == "installed" ]] || missing+=("$package")
done
# Not from Debian, and not needed: without it the server refuses what asks for structured output.
fetch_xgrammar() {
  "$(dirname "$0")/install_xgrammar.sh" ||
    echo "install: xgrammar could not be fetched from PyPI: lockstep will have no structured output" >&2
}
if [[ ${#missing[@]} -eq 0 ]]; then
  fetch_xgrammar
  echo "install: everything is there"
  exit 0
fi

run=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "install: run this as root, or install sudo" >&2; exit 1; }
  run=(sudo)
fi
echo "install: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${run[@]}" apt-get update -q </dev/null
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
fetch_xgrammar
