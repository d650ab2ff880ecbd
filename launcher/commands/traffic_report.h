// What the reports of `lockstep simulate` and `lockstep bench serve` say alike.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launcher/percentiles.h"

namespace lockstep {

inline double Over(double a, double b) { return b > 0 ? a / b : 0; }
inline double Over(uint64_t a, double b) { return Over(static_cast<double>(a), b); }

inline nlohmann::ordered_json PercentilesJson(const Percentiles& found) {
  return {{"p50", found.At(0.5)},
          {"p90", found.At(0.9)},
          {"p99", found.At(0.99)},
          {"mean", found.mean()},
          {"count", found.count()}};
}

inline void PrintPercentiles(const char* name, const Percentiles& found) {
  std::printf("%-13s p50 %.4g s, p90 %.4g s, p99 %.4g s\n", name, found.At(0.5), found.At(0.9),
              found.At(0.99));
}

}  // namespace lockstep
