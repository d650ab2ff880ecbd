// SplitMix64 (Steele, Lea, Flood 2014) as counters: element i of the stream `key` is
// MixBits(key + kGoldenGamma * i), the same on every machine.
#pragma once

#include <cstdint>

namespace lockstep {

inline constexpr uint64_t kGoldenGamma = 0x9E3779B97F4A7C15u;

// The finalizer: a bijection whose outputs for 0, g, 2g, ... (g: kGoldenGamma) pass BigCrush.
constexpr uint64_t MixBits(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

}  // namespace lockstep
