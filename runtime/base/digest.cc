#include "runtime/base/digest.h"

#include <xxhash.h>

#include "runtime/base/check.h"

namespace lockstep {

uint64_t Digest64(std::span<const std::byte> bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

struct DigestStream::State {
  State() : xxh(XXH3_createState()) {
    LOCKSTEP_CHECK(xxh != nullptr);
    (void)XXH3_64bits_reset(xxh);
  }
  ~State() { (void)XXH3_freeState(xxh); }
  XXH3_state_t* xxh;
};

DigestStream::DigestStream() : state_(std::make_unique<State>()) {}
DigestStream::~DigestStream() = default;
DigestStream::DigestStream(DigestStream&&) noexcept = default;
DigestStream& DigestStream::operator=(DigestStream&&) noexcept = default;

void DigestStream::Add(std::span<const std::byte> bytes) {
  if (!bytes.empty()) (void)XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size());
}

uint64_t DigestStream::Value() const { return XXH3_64bits_digest(state_->xxh); }

}  // namespace lockstep
