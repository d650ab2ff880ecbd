#include "runtime/tensor/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

constexpr int64_t kSuperBlocks = 8;
constexpr int64_t kHalf = kBlockWeights / 2;
constexpr float kLargestHalf = 65504;

// To the nearest integer, ties to even, for magnitudes below 2^22: in a form that vectorizes.
float Nearest(float value) {
  constexpr float kShift = 12582912;  // 1.5 * 2^23: the sum's last bit is worth 1
  return (value + kShift) - kShift;
}

float Code(float value, float lowest, float highest) {
  return Nearest(std::min(std::max(value, lowest), highest));
}

// The nearest half that is finite, as the float that decoding will see.
float Rounded(float scale) {
  return HalfToFloat(FloatToHalf(std::min(std::max(scale, -kLargestHalf), kLargestHalf)));
}

// Sums in eight lanes, which vectorize where one sum in order would not.
struct Sum {
  static constexpr int64_t kLanes = 8;
  float lanes[kLanes] = {};

  float Total() const {
    float total = 0;
    for (const float lane : lanes) total += lane;
    return total;
  }
};

// 0 for scales so small that they are nothing.
float Reciprocal(float scale) {
  const float reciprocal = 1 / scale;
  return std::isfinite(reciprocal) ? reciprocal : 0.0f;
}

void PutHalf(std::byte* at, float value) {
  const uint16_t bits = FloatToHalf(value);
  std::memcpy(at, &bits, sizeof bits);
}

void PutNibbles(const float* codes, std::byte* to) {
  for (int64_t j = 0; j < kHalf; ++j) {
    const int low = static_cast<int>(codes[j]) & 15;
    const int high = static_cast<int>(codes[j + kHalf]) & 15;
    to[j] = static_cast<std::byte>(low | high << 4);
  }
}

// The weight of largest magnitude, the first of equals.
float Largest(const float* x, int64_t count) {
  float largest = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
  }
  return largest;
}

void QuantizeQ8_0(const float* x, std::byte* inner, std::byte* codes) {
  const float d = Rounded(std::fabs(Largest(x, kBlockWeights)) / 127);
  const float reciprocal = Reciprocal(d);
  PutHalf(inner, d);
  for (int64_t j = 0; j < kBlockWeights; ++j) {
    codes[j] = static_cast<std::byte>(static_cast<int>(Code(x[j] * reciprocal, -127, 127)));
  }
}

// Codes reach from -8 to 7: the largest weight becomes -8, whatever its sign.
void QuantizeQ4_0(const float* x, std::byte* inner, std::byte* codes) {
  const float d = Rounded(Largest(x, kBlockWeights) / -8);
  const float reciprocal = Reciprocal(d);
  PutHalf(inner, d);
  float q[kBlockWeights];
  for (int64_t j = 0; j < kBlockWeights; ++j) q[j] = Code(x[j] * reciprocal, -8, 7) + 8;
  PutNibbles(q, codes);
}

// The scale s that makes the sum of x^2 (x - s * q)^2 small, q from -32 to 31: large weights matter
// more. Tries some scales; for the codes of each the best scale follows by least squares.
float BestSymmetricScale(const float* x) {
  const float largest = Largest(x, kHalf);
  float best_gain = 0, best = 0;
  for (int step = -8; step <= 8; ++step) {
    const float reciprocal = Reciprocal(largest / (-32 + 0.125f * static_cast<float>(step)));
    Sum products, squares;
    for (int64_t first = 0; first < kHalf; first += Sum::kLanes) {
      for (int64_t lane = 0; lane < Sum::kLanes; ++lane) {
        const float weight = x[first + lane];
        const float q = Code(weight * reciprocal, -32, 31);
        products.lanes[lane] += weight * weight * weight * q;
        squares.lanes[lane] += weight * weight * q * q;
      }
    }
    const float product = products.Total();
    const float scale = product * Reciprocal(squares.Total());
    if (product * scale > best_gain) {
      best_gain = product * scale;
      best = scale;
    }
  }
  return best;
}

// The blocks of one super-block, at most eight.
void QuantizeQ6_K(const float* x, int64_t blocks, std::byte* outer, std::byte* inner,
                  std::byte* codes) {
  float scales[2 * kSuperBlocks];
  for (int64_t i = 0; i < 2 * blocks; ++i) {
    // Of magnitude about 1, so that powers of small weights do not vanish.
    const float largest = std::fabs(Largest(x + i * kHalf, kHalf));
    const float reciprocal = Reciprocal(largest);
    float unit[kHalf];
    for (int64_t j = 0; j < kHalf; ++j) unit[j] = x[i * kHalf + j] * reciprocal;
    scales[i] = BestSymmetricScale(unit) * largest;
  }
  const float d = Rounded(Largest(scales, 2 * blocks) / -128);
  const float reciprocal = Reciprocal(d);
  PutHalf(outer, d);
  for (int64_t block = 0; block < blocks; ++block, codes += 24) {
    float q[kBlockWeights];
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t i = 2 * block + half;
      const float scale = Code(scales[i] * reciprocal, -128, 127);
      inner[i] = static_cast<std::byte>(static_cast<int>(scale));
      const float inverse = Reciprocal(d * scale);
      for (int64_t j = 0; j < kHalf; ++j)
        q[half * kHalf + j] = Code(x[i * kHalf + j] * inverse, -32, 31) + 32;
    }
    PutNibbles(q, codes);
    for (int64_t j = 0; j < 8; ++j) {
      int four = 0;
      for (int64_t part = 0; part < 4; ++part)
        four |= static_cast<int>(q[j + 8 * part]) >> 4 << (2 * part);
      codes[16 + j] = static_cast<std::byte>(four);
    }
  }
}

struct Line {
  float scale = 0, minimum = 0;  // weight = scale * q - minimum
};

// A block of weights and how much the error of each counts.
struct WeighedBlock {
  const float* x;
  float importance[kBlockWeights];
  float lowest, top;
};

// The line that fits best if every weight gets the code of the grid with this spacing; neither of
// its parts is negative.
Line FitLine(const WeighedBlock& block, float reciprocal) {
  Sum ws, wqs, wqqs, wxs, wxqs;
  for (int64_t first = 0; first < kBlockWeights; first += Sum::kLanes) {
    for (int64_t lane = 0; lane < Sum::kLanes; ++lane) {
      const float x = block.x[first + lane];
      const float w = block.importance[first + lane];
      const float q = Code((x - block.lowest) * reciprocal, 0, block.top);
      ws.lanes[lane] += w;
      wqs.lanes[lane] += w * q;
      wqqs.lanes[lane] += w * q * q;
      wxs.lanes[lane] += w * x;
      wxqs.lanes[lane] += w * x * q;
    }
  }
  const float w = ws.Total(), wq = wqs.Total(), wqq = wqqs.Total();
  const float wx = wxs.Total(), wxq = wxqs.Total();
  const float determinant = w * wqq - wq * wq;
  if (!(determinant > 0)) return {};
  const Line line{(w * wxq - wx * wq) / determinant, (wq * wxq - wqq * wx) / determinant};
  return line.minimum < 0 ? Line{wxq / wqq, 0} : line;
}

float ErrorOf(const Line& line, const WeighedBlock& block, float reciprocal) {
  Sum error;
  for (int64_t first = 0; first < kBlockWeights; first += Sum::kLanes) {
    for (int64_t lane = 0; lane < Sum::kLanes; ++lane) {
      const float x = block.x[first + lane];
      const float q = Code((x - block.lowest) * reciprocal, 0, block.top);
      const float difference = line.scale * q - line.minimum - x;
      error.lanes[lane] += block.importance[first + lane] * difference * difference;
    }
  }
  return error.Total();
}

// The line through the codes 0..top that comes near the weights of a block: of some grids, the one
// whose fitted line errs least, errors of large weights counting more.
Line BestLine(const float* x, float top) {
  WeighedBlock block{x, {}, 0, top};
  float highest = x[0], squares = 0;
  for (int64_t j = 0; j < kBlockWeights; ++j) {
    block.lowest = std::min(block.lowest, x[j]);
    highest = std::max(highest, x[j]);
    squares += x[j] * x[j];
  }
  if (highest <= block.lowest) return {0, -block.lowest};
  const float mean = std::sqrt(squares / kBlockWeights);
  for (int64_t j = 0; j < kBlockWeights; ++j) block.importance[j] = mean + std::fabs(x[j]);
  Line best{(highest - block.lowest) / top, -block.lowest};
  float least = INFINITY;
  for (int step = -10; step <= 10; ++step) {
    const float spread = highest - block.lowest;
    const float reciprocal = (top + 0.1f * static_cast<float>(step)) / spread;
    const Line line = FitLine(block, reciprocal);
    const float error = ErrorOf(line, block, reciprocal);
    if (line.scale > 0 && error < least) {
      least = error;
      best = line;
    }
  }
  return best;
}

// Q4_K (top 15) and Q5_K (top 31) of one super-block.
void QuantizeLines(const float* x, int64_t blocks, float top, std::byte* outer, std::byte* inner,
                   std::byte* codes) {
  constexpr float kTopScale = 63;  // six bits, as ggml's
  Line lines[kSuperBlocks];
  float largest_scale = 0, largest_minimum = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    lines[block] = BestLine(x + block * kBlockWeights, top);
    largest_scale = std::max(largest_scale, lines[block].scale);
    largest_minimum = std::max(largest_minimum, lines[block].minimum);
  }
  const float d = Rounded(largest_scale / kTopScale);
  const float dmin = Rounded(largest_minimum / kTopScale);
  PutHalf(outer, d);
  PutHalf(outer + 2, dmin);
  for (int64_t block = 0; block < blocks; ++block) {
    const float scale = Code(lines[block].scale * Reciprocal(d), 0, kTopScale);
    const float minimum = Code(lines[block].minimum * Reciprocal(dmin), 0, kTopScale);
    inner[2 * block] = static_cast<std::byte>(static_cast<int>(scale));
    inner[2 * block + 1] = static_cast<std::byte>(static_cast<int>(minimum));
    const float reciprocal = Reciprocal(d * scale);
    float q[kBlockWeights];
    for (int64_t j = 0; j < kBlockWeights; ++j) {
      q[j] = Code((x[block * kBlockWeights + j] + dmin * minimum) * reciprocal, 0, top);
    }
    if (top > 15) {
      uint32_t word = 0;
      for (int64_t j = 0; j < kBlockWeights; ++j) word |= (static_cast<uint32_t>(q[j]) >> 4) << j;
      std::memcpy(codes, &word, sizeof word);
      codes += sizeof word;
    }
    PutNibbles(q, codes);
    codes += kHalf;
  }
}

void QuantizeFp8(const float* x, int64_t inputs, std::byte* row) {
  if (inputs == 0) return;
  const float scale = std::fabs(Largest(x, inputs)) / 448;
  const float reciprocal = Reciprocal(scale);
  std::memcpy(row, &scale, sizeof scale);
  for (int64_t j = 0; j < inputs; ++j)
    row[sizeof scale + j] = static_cast<std::byte>(FloatToFp8E4m3(x[j] * reciprocal));
}

}  // namespace

StatusOr<WeightFormat> QuantizedFormat(std::string_view name) {
  constexpr std::pair<std::string_view, Encoding> kNames[] = {
      {"q8_0", Encoding::kQ8_0}, {"q6_k", Encoding::kQ6_K}, {"q5_k", Encoding::kQ5_K},
      {"q4_k", Encoding::kQ4_K}, {"q4_0", Encoding::kQ4_0}, {"fp8", Encoding::kFp8}};
  for (const auto& [known, encoding] : kNames) {
    if (name == known) return WeightFormat::Of(encoding);
  }
  return UsageError("cannot quantize to '%s'; give q8_0, q6_k, q5_k, q4_k, q4_0 or fp8",
                    std::string(name));
}

void QuantizeRow(const WeightFormat& format, const float* weights, int64_t inputs, std::byte* row) {
  if (format.encoding == Encoding::kFp8) {
    LOCKSTEP_CHECK(format.group_blocks == kWholeRow);
    return QuantizeFp8(weights, inputs, row);
  }
  LOCKSTEP_CHECK(inputs % kBlockWeights == 0);
  const RowLayout layout = LayoutOf(format, inputs, 0);
  std::byte* outer = row;
  const int64_t step = format.group_blocks == 0 ? 1 : format.group_blocks;
  for (int64_t block = 0; block < inputs / kBlockWeights; block += step) {
    const float* x = weights + block * kBlockWeights;
    const int64_t blocks = std::min(step, inputs / kBlockWeights - block);
    std::byte* inner = row + layout.inner_at + static_cast<uint64_t>(block) * layout.inner_bytes;
    std::byte* codes = row + layout.codes_at + static_cast<uint64_t>(block) * layout.code_bytes;
    switch (format.encoding) {
      case Encoding::kQ8_0:
        QuantizeQ8_0(x, inner, codes);
        break;
      case Encoding::kQ4_0:
        QuantizeQ4_0(x, inner, codes);
        break;
      case Encoding::kQ4_K:
        QuantizeLines(x, blocks, 15, outer, inner, codes);
        break;
      case Encoding::kQ5_K:
        QuantizeLines(x, blocks, 31, outer, inner, codes);
        break;
      case Encoding::kQ6_K:
        QuantizeQ6_K(x, blocks, outer, inner, codes);
        break;
      default:
        LOCKSTEP_CHECK(false);
    }
    outer += layout.outer_bytes;
  }
}

}  // namespace lockstep
