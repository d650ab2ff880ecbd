// A 64-bit digest (XXH3) of bytes, for equality of models, plans and hidden states; not for
// security.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace lockstep {

uint64_t Digest64(std::span<const std::byte> bytes, uint64_t seed = 0);

// Digest64 (seed 0) of bytes that come in pieces, however they are cut.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(DigestStream&&) noexcept;
  DigestStream& operator=(DigestStream&&) noexcept;
  void Add(std::span<const std::byte> bytes);
  uint64_t Value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename T>
uint64_t DigestOf(const T* values, size_t count, uint64_t seed = 0) {
  return Digest64(std::as_bytes(std::span<const T>(values, count)), seed);
}

}  // namespace lockstep
