#include "runtime/base/digest.h"

#include <xxhash.h>

namespace lockstep {

uint64_t Digest64(std::span<const std::byte> bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

}  // namespace lockstep
