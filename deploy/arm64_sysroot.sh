#!/usr/bin/env bash
# Makes build/arm64-sysroot: Debian's ARM libraries, unpacked beside this machine's own and not installed (several of
# them cannot be installed together with the x86 ones). For the preset arm64. Needs root, for debootstrap.
set -euo pipefail
cd "$(dirname "$0")/.."
sysroot=$PWD/build/arm64-sysroot
libraries=libc6-dev,libstdc++-12-dev,libgrpc++-dev,libprotobuf-dev,libprotoc-dev,libabsl-dev,libspdlog-dev
libraries+=,libcli11-dev,libyaml-cpp-dev,nlohmann-json3-dev,libpcre2-dev,libxxhash-dev,libssl-dev,libgtest-dev
libraries+=,libgmock-dev,googletest,protobuf-compiler,protobuf-compiler-grpc,libcurl4-openssl-dev,libboost1.81-dev
# Of which libraries it was made; with others it is made anew.
if [[ "$(cat "$sysroot/complete" 2>/dev/null)" == "$libraries" ]]; then
  echo "arm64_sysroot: everything is there"
  exit 0
fi
command -v debootstrap >/dev/null || apt-get install -y -q --no-install-recommends debootstrap </dev/null
mirror=$(apt-cache policy | sed -n 's/^ *500 \(http[^ ]*\) bookworm\/main.*/\1/p' | head -1)
rm -rf "$sysroot"
mkdir -p build
debootstrap --foreign --arch=arm64 --variant=minbase --include="$libraries" bookworm "$sysroot" \
  "${mirror:-http://deb.debian.org/debian}"
for package in "$sysroot"/var/cache/apt/archives/*.deb; do
  # Not dpkg -x: it would replace the links of the merged /usr by folders.
  dpkg-deb --fsys-tarfile "$package" | tar -C "$sysroot" --keep-directory-symlink -xf -
done
echo "$libraries" >"$sysroot/complete"
