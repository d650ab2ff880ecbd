// Random numbers as counters: a draw is a function of (seed, position, token id) and of nothing
// else, so every rank, every batch and every replay sees the same noise.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/base/split_mix.h"

namespace lockstep {

// Names the SplitMix64 stream of one position of one request; element `token id` of it is that
// token's noise.
constexpr uint64_t NoiseKey(uint64_t seed, int64_t position) {
  return MixBits(MixBits(seed + kGoldenGamma) +
                 kGoldenGamma * (static_cast<uint64_t>(position) + 1));
}

// 52 uniform bits.
constexpr uint64_t NoiseBits(uint64_t key, int64_t token_id) {
  return MixBits(key + kGoldenGamma * (static_cast<uint64_t>(token_id) + 1)) >> 12;
}

// A standard Gumbel variable in [-3.6, 36.8] from 52 bits; u = (bits + 1/2) / 2^52 is exact in a
// double, never 0 or 1.
inline double GumbelFromBits(uint64_t bits) {
  const double u = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  return -std::log(-std::log(u));
}

inline double Gumbel(uint64_t key, int64_t token_id) {
  return GumbelFromBits(NoiseBits(key, token_id));
}

}  // namespace lockstep
