// Portable rows of random bits, and every format there is.
#pragma once

#include <random>
#include <vector>

#include "runtime/tensor/weight_format.h"

namespace lockstep::testing {

inline std::vector<WeightFormat> AllFormats() {
  std::vector<WeightFormat> formats = {WeightFormat::Fp8(kWholeRow), WeightFormat::Fp8(4),
                                       WeightFormat::Of(Encoding::kNvfp4)};
  for (int encoding = 0; encoding < static_cast<int>(Encoding::kNvfp4); ++encoding) {
    if (static_cast<Encoding>(encoding) != Encoding::kFp8)
      formats.push_back(WeightFormat::Of(static_cast<Encoding>(encoding)));
  }
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const int group : {32, 64, 128}) {
      for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
        formats.push_back(WeightFormat::Mlx(bits, group, type));
    }
  }
  return formats;
}

inline std::vector<std::byte> RandomRow(const WeightFormat& format, int64_t inputs, int64_t phase,
                                        std::mt19937_64* random) {
  std::vector<std::byte> row(LayoutOf(format, inputs, phase).row_bytes);
  for (std::byte& byte : row) byte = static_cast<std::byte>((*random)());
  return row;
}

// The same, but every weight is finite: without that bit no exponent is the largest one.
inline std::vector<std::byte> FiniteRow(const WeightFormat& format, int64_t inputs, int64_t phase,
                                        std::mt19937_64* random) {
  std::vector<std::byte> row = RandomRow(format, inputs, phase, random);
  const bool numbers = format.plain() || format.encoding == Encoding::kFp8;
  const size_t end = numbers ? row.size() : LayoutOf(format, inputs, phase).codes_at;
  for (size_t i = 0; i < end; ++i) row[i] &= std::byte{0xbf};
  // Negative: divides. Then it is at least 2, and finite.
  if (format.encoding == Encoding::kNvfp4 && end > 0 && (row[3] & std::byte{0x80}) != std::byte{0})
    row[3] = (row[3] | std::byte{0x40}) & std::byte{0xfe};
  return row;
}

}  // namespace lockstep::testing
