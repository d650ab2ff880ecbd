// How the weights of a matrix are stored: plain numbers, or codes with scales.
//
// The portable layout of a row, which host memory, shard files and the exchange between loading
// ranks share: up to three planes, one behind the other, nothing between them:
//
//     outer   one entry per group of `group_blocks` blocks (the scales of a K-quant super-block, of
//             an MLX group, of an FP8 tile), or one for the whole row
//     inner   one entry per block of 32 weights: its own scales
//     codes   one entry per block of 32 weights: the weights
//
// A row can be cut between any two blocks of 32. The part right of a cut starts inside a group if
// the cut does: `phase` is the number of blocks of its first group that lie left of it, and both
// parts keep that group's outer entry. So a cut never requantizes: every part holds exactly the
// weights that the whole held. Plain numbers and FP8 with a scale per row can be cut anywhere.
//
// The entries, all little-endian (weights of a block are w[0..31]; "nibbles": byte j holds w[j] in
// its low and w[j + 16] in its high half):
//
// clang-format off
//   encoding      outer (group)   inner            codes                    weight
//   f32 f16 bf16  -               -                the number               the number
//   fp8           f32 s (row, 4)  -                e4m3                     s * q
//   q4_0          -               f16 d            nibbles                  d * (q - 8)
//   q4_1          -               f16 d, m         nibbles                  d * q + m
//   q5_0          -               f16 d            u32 bit 4, nibbles       d * (q - 16)
//   q5_1          -               f16 d, m         u32 bit 4, nibbles       d * q + m
//   q8_0          -               f16 d            int8                     d * q
//   q2_k          f16 d, dmin (8) 2 x (u4 sc, m)   4 planes of 2 bits       (d * sc) * q - dmin * m
//   q3_k          f16 d (8)       2 x int8 sc      2-bit planes, u32 bit 2  (d * sc) * (q - 4)
//   q4_k          f16 d, dmin (8) u8 sc, m         nibbles                  (d * sc) * q - dmin * m
//   q5_k          f16 d, dmin (8) u8 sc, m         u32 bit 4, nibbles       (d * sc) * q - dmin * m
//   q6_k          f16 d (8)       2 x int8 sc      nibbles, 2-bit planes    (d * sc) * (q - 32)
//   iq4_nl        -               f16 d            nibbles                  d * table[q]
//   iq4_xs        f16 d (8)       int8 sc          nibbles                  (d * sc) * table[q]
//   mxfp4         -               e8m0 s           nibbles                  s * e2m1[q]
//   nvfp4         f32 s (row)     2 x e4m3 sc      nibbles                  (s * sc) * e2m1[q]
//   mlx           s, b (1, 2, 4)  -                bit string               s * q + b
// clang-format on
//
// Two scales in an inner entry: the first for w[0..15], the second for w[16..31]. 2-bit planes:
// byte j of 8 holds w[j], w[j + 8], w[j + 16], w[j + 24] from the lowest bits up. u32 bit n: bit j
// of the word is bit n of w[j]; q5 has it before the nibbles, q3_k behind the planes of its low two
// bits; q6_k has the low four bits as nibbles, then the upper two as planes. q2_k's inner byte: the
// scale in the low, the min in the high half. mlx: 32 codes of `bits` bits each, lowest first; s
// and b are of `scale_type`. mxfp4: the scale 255 is 2^128, as in ggml. nvfp4: where s is negative,
// its magnitude divides, (sc / -s) * e2m1[q], as compressed-tensors has it: of most numbers no
// rounded reciprocal gives all quotients. Products are taken in float32 in the order that the last
// column shows, each rounded once: the values of ggml's dequantize_row_*, of compressed-tensors,
// ModelOpt and mlx. A row of no weights has no bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/base/dtype.h"

namespace lockstep {

// clang-format off
enum class Encoding : uint8_t {
  kF32, kF16, kBF16, kFp8,
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0,
  kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K,
  kIq4Nl, kIq4Xs, kMxfp4, kNvfp4, kMlx,
};
// clang-format on

inline constexpr int64_t kBlockWeights = 32;
inline constexpr int16_t kWholeRow = -1;
// As files have them: rows and columns that share a scale of block FP8; weights per e4m3 scale.
inline constexpr int64_t kFp8Tile = 128;
inline constexpr int64_t kNvfp4Group = 16;

struct WeightFormat {
  Encoding encoding = Encoding::kF32;
  int16_t group_blocks = 0;        // blocks per outer entry; 0: none; kWholeRow: one per row
  uint8_t bits = 0;                // mlx: 2, 3, 4, 5, 6 or 8
  DType scale_type = DType::kF32;  // mlx: of scales and biases

  constexpr WeightFormat() = default;
  // Implicit: a plain type is a format.
  constexpr WeightFormat(DType type)
      : encoding(type == DType::kF32   ? Encoding::kF32
                 : type == DType::kF16 ? Encoding::kF16
                                       : Encoding::kBF16) {}
  // The format of an encoding that has no choices (everything but fp8 and mlx).
  static WeightFormat Of(Encoding encoding);
  static WeightFormat Fp8(int16_t group_blocks);  // kWholeRow, or 4 for tiles of 128
  static WeightFormat Mlx(int bits, int group_weights, DType scale_type);

  bool operator==(const WeightFormat&) const = default;
  // Plain numbers: no planes but the codes.
  bool plain() const { return encoding <= Encoding::kBF16; }
  DType plain_type() const;  // only if plain()
  // Columns between which a row may be cut: 1 or 32.
  int64_t cut_weights() const;
  std::string Name() const;  // "BF16", "Q4_K", "MLX 4 bits, group 64"
};

// Where the planes of a row of `inputs` weights lie, whose first block has `phase`.
struct RowLayout {
  uint64_t outer_entries = 0, outer_bytes = 0;  // bytes of one entry
  uint64_t inner_bytes = 0;                     // of one block
  uint64_t code_bytes = 0;                      // of one block; plain and fp8: of one weight
  uint64_t inner_at = 0, codes_at = 0;          // offsets in the row
  uint64_t row_bytes = 0;
};

// inputs >= 0 and below 2^48 (no product overflows); phase < group_blocks.
RowLayout LayoutOf(const WeightFormat& format, int64_t inputs, int64_t phase);

// Weights [begin, begin + count) of a portable row as float32, exactly.
void DecodeRow(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase,
               int64_t begin, int64_t count, float* out);

// Copies the columns [begin, end) of a row to a row that holds just them. begin is a multiple of
// cut_weights(), end too or the end of the row.
void CutRow(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase,
            int64_t begin, int64_t end, std::byte* to);

// The phase of a cut at column `begin` of a row with `phase`.
int64_t PhaseAt(const WeightFormat& format, int64_t phase, int64_t begin);

}  // namespace lockstep
