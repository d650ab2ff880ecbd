// Random matrices in every format that the 8-bit kernels know, and what their rows stand for.
#pragma once

#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "runtime/kernels/backend.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels {

inline std::vector<WeightFormat> FastFormats() {
  std::vector<WeightFormat> formats;
  for (const Encoding encoding :
       {Encoding::kQ4_0, Encoding::kQ4_1, Encoding::kQ5_0, Encoding::kQ5_1, Encoding::kQ8_0,
        Encoding::kQ2_K, Encoding::kQ3_K, Encoding::kQ4_K, Encoding::kQ5_K, Encoding::kQ6_K,
        Encoding::kIq4Nl, Encoding::kIq4Xs, Encoding::kMxfp4, Encoding::kNvfp4}) {
    formats.push_back(WeightFormat::Of(encoding));
  }
  for (const int bits : {2, 3, 4, 5, 6, 8})
    formats.push_back(WeightFormat::Mlx(bits,
                                        bits == 5   ? 32
                                        : bits == 6 ? 128
                                                    : 64,
                                        bits == 3   ? DType::kF32
                                        : bits == 8 ? DType::kF16
                                                    : DType::kBF16));
  return formats;
}

// Random bits where any bits are a number, and scales of sane sizes.
class RandomRows {
 public:
  explicit RandomRows(uint64_t seed) : random_(seed) {}

  // With `code`, every byte of a code is that one.
  HostMatrix Make(const WeightFormat& format, int64_t count, int64_t outputs, int64_t inputs,
                  int64_t phase, std::optional<uint8_t> code = std::nullopt) {
    HostMatrix matrix = HostMatrix::Allocate(format, count, outputs, inputs, "test", phase).value();
    const RowLayout layout = LayoutOf(format, inputs, phase);
    for (int64_t row = 0; row < count * outputs; ++row) {
      std::byte* at = matrix.data.data() + static_cast<uint64_t>(row) * layout.row_bytes;
      for (uint64_t i = 0; i < layout.row_bytes; ++i)
        at[i] = static_cast<std::byte>(code.value_or(random_() & 0xff));
      for (uint64_t entry = 0; entry < layout.outer_entries; ++entry)
        Outer(format, at + entry * layout.outer_bytes, layout.outer_bytes);
      for (int64_t block = 0; block < (inputs + kBlockWeights - 1) / kBlockWeights; ++block)
        Inner(format, at + layout.inner_at + static_cast<uint64_t>(block) * layout.inner_bytes,
              layout.inner_bytes);
    }
    return matrix;
  }

  std::vector<float> Floats(int64_t count) {
    std::vector<float> values = lockstep::testing::Random(random_, count);
    values.resize(static_cast<size_t>(count));
    for (float& value : values) value *= random_() % 16 == 0 ? 20.0f : 1.0f;
    return values;
  }

 private:
  // Between 2^-7 and 2^-3, either sign.
  void PutHalf(std::byte* to) {
    const auto half = static_cast<uint16_t>((random_() & 0x83ff) | (8 + random_() % 4) << 10);
    std::memcpy(to, &half, 2);
  }
  void PutNumber(DType type, std::byte* to) {
    if (type == DType::kF16) return PutHalf(to);
    const float value = 0.1f * (static_cast<float>(random_() & 0xffff) / 32768 - 1);
    const uint16_t bits = FloatToBf16(value);
    if (type == DType::kF32) std::memcpy(to, &value, 4);
    if (type == DType::kBF16) std::memcpy(to, &bits, 2);
  }
  // Scales that multiply and, negative, scales that divide, in one matrix.
  void PutNvfp4(std::byte* to) {
    const float value = std::uniform_real_distribution<float>(0.01f, 0.1f)(random_);
    const float scale = random_() % 2 == 0 ? value : -1 / value;
    std::memcpy(to, &scale, sizeof scale);
  }
  void Outer(const WeightFormat& format, std::byte* to, uint64_t bytes) {
    const bool mlx = format.encoding == Encoding::kMlx;
    const bool nvfp4 = format.encoding == Encoding::kNvfp4;
    const DType type = mlx ? format.scale_type : DType::kF16;
    if (nvfp4) return PutNvfp4(to);
    for (uint64_t at = 0; at < bytes; at += SizeOf(type)) PutNumber(type, to + at);
  }
  void Inner(const WeightFormat& format, std::byte* to, uint64_t bytes) {
    switch (format.encoding) {
      case Encoding::kQ4_0:
      case Encoding::kQ4_1:
      case Encoding::kQ5_0:
      case Encoding::kQ5_1:
      case Encoding::kQ8_0:
      case Encoding::kIq4Nl:
        for (uint64_t at = 0; at < bytes; at += 2) PutHalf(to + at);
        return;
      case Encoding::kMxfp4:
        *to = static_cast<std::byte>(random_() % 50 == 0 ? random_() % 2 : 118 + random_() % 10);
        return;
      case Encoding::kNvfp4:
        for (uint64_t at = 0; at < bytes; ++at) to[at] = static_cast<std::byte>(random_() % 0x7f);
        return;
      default:
        return;
    }
  }

  std::mt19937_64 random_;
};

inline HostMatrix Copy(const HostMatrix& from) {
  HostMatrix to =
      HostMatrix::Allocate(from.format, from.count, from.outputs, from.inputs, "test", from.phase)
          .value();
  std::memcpy(to.data.data(), from.data.data(), from.data.bytes());
  return to;
}

inline std::vector<float> Decoded(const HostMatrix& matrix, int64_t row) {
  std::vector<float> values(static_cast<size_t>(matrix.inputs));
  DecodeRow(matrix.format, matrix.data.data() + static_cast<uint64_t>(row) * matrix.row_bytes(),
            matrix.inputs, matrix.phase, 0, matrix.inputs, values.data());
  return values;
}

}  // namespace lockstep::kernels
