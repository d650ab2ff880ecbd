// How the blocks of every weight format are read from a panel (interleave.h): codes as four bytes
// per lane, scales as sixteen lanes.
#pragma once

#include "runtime/base/dtype.h"
#include "runtime/kernels/cpu/quantized.h"
#include "runtime/kernels/cpu/registers_inl.h"

namespace lockstep::kernels {
namespace {

inline constexpr uint64_t kLaneCount = 16;

// How stored words are loaded: here one of every lane.
struct EveryLane {
  static U32x16 Load(const std::byte* words) { return LoadWords(words); }
  static U32x16 LoadPlane(const std::byte* plane) { return LoadWords(plane); }
};

// Word j of a block holds the weights 4 j .. 4 j + 3 of every lane, j = 0..7, from stored words of
// `kBits` bits per weight. Where j is even, word j + 1 takes the same steps from the next stored
// word, or from the same plane of single bits, one bit on. kLargest bounds the magnitude of a code.
template <int kBits>
struct Codes;

// The single bits of word j, moved to bit kPlace.
template <int j, int kPlace, typename Loader>
inline auto SingleBits(const std::byte* plane) {
  return Shift<kPlace - j>(Loader::LoadPlane(plane)) & (0x01010101u << kPlace);
}

template <>
struct Codes<2> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 3;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Shift<-2 * (j / 2)>(Loader::Load(codes + j % 2 * 64)) & 0x03030303u;
  }
};
template <>
struct Codes<3> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 7;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Codes<2>::Word<j, Loader>(codes) | SingleBits<j, 2, Loader>(codes + 2 * 64);
  }
};
template <>
struct Codes<4> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 15;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Shift<j / 4 * -4>(Loader::Load(codes + j % 4 * 64)) & 0x0f0f0f0fu;
  }
};
template <>
struct Codes<5> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 31;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Codes<4>::Word<j, Loader>(codes + 64) | SingleBits<j, 4, Loader>(codes);
  }
};
template <>
struct Codes<6> {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 63;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    const auto upper = Shift<4 - 2 * (j / 2)>(Loader::Load(codes + (4 + j % 2) * 64));
    return Codes<4>::Word<j, Loader>(codes) | (upper & 0x30303030u);
  }
};
template <>
struct Codes<8> {
  static constexpr bool kSigned = true;
  static constexpr int kLargest = 128;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Loader::Load(codes + j * 64);
  }
};

struct Iq4Codes {
  static constexpr bool kSigned = true;
  static constexpr int kLargest = 127;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Lookup(Codes<4>::Word<j, Loader>(codes), kIq4Values);
  }
};
// Moved up by the largest magnitude, so that no code is negative.
inline constexpr int8_t kE2m1Zero = 12;
struct MovedE2m1 {
  int8_t values[16];
};
constexpr MovedE2m1 MoveE2m1() {
  MovedE2m1 moved{};
  for (int i = 0; i < 16; ++i) moved.values[i] = static_cast<int8_t>(kE2m1Doubled[i] + kE2m1Zero);
  return moved;
}
inline constexpr MovedE2m1 kMovedE2m1 = MoveE2m1();

struct E2m1Codes {
  static constexpr bool kSigned = false;
  static constexpr int kLargest = 2 * kE2m1Zero;
  template <int j, typename Loader>
  static auto Word(const std::byte* codes) {
    return Lookup(Codes<4>::Word<j, Loader>(codes), kMovedE2m1.values);
  }
};

inline F32x16 LoadHalves(const std::byte* from) {
  return LoadWide(reinterpret_cast<const Half*>(from));
}
inline const uint8_t* Unsigned(const std::byte* from) {
  return reinterpret_cast<const uint8_t*>(from);
}
inline const int8_t* Signed(const std::byte* from) { return reinterpret_cast<const int8_t*>(from); }

// The scales (and minimums) of the two halves of a block; formats with one use the first.
struct BlockScales {
  F32x16 scale[2];
  F32x16 minimum[2];
};

// kTwo: one scale per half. kMinimum: a number is added to every weight. Bytes are of one lane.
struct HalfScale {
  static constexpr bool kTwo = false, kMinimum = false;
  static constexpr uint64_t kOuterBytes = 0, kInnerBytes = 2;
  static void Load(DType, const std::byte*, const std::byte* inner, BlockScales* to) {
    to->scale[0] = LoadHalves(inner);
  }
};
struct HalfScaleMinimum {
  static constexpr bool kTwo = false, kMinimum = true;
  static constexpr uint64_t kOuterBytes = 0, kInnerBytes = 4;
  static void Load(DType, const std::byte*, const std::byte* inner, BlockScales* to) {
    to->scale[0] = LoadHalves(inner);
    to->minimum[0] = LoadHalves(inner + 2 * kLaneCount);
  }
};
struct SuperScaleMinimum {  // q4_k, q5_k
  static constexpr bool kTwo = false, kMinimum = true;
  static constexpr uint64_t kOuterBytes = 4, kInnerBytes = 2;
  static void Load(DType, const std::byte* outer, const std::byte* inner, BlockScales* to) {
    to->scale[0] = LoadHalves(outer) * BytesToFloat(Unsigned(inner));
    to->minimum[0] =
        Splat(0) - LoadHalves(outer + 2 * kLaneCount) * BytesToFloat(Unsigned(inner + kLaneCount));
  }
};
struct SuperHalves {  // q3_k, q6_k
  static constexpr bool kTwo = true, kMinimum = false;
  static constexpr uint64_t kOuterBytes = 2, kInnerBytes = 2;
  static void Load(DType, const std::byte* outer, const std::byte* inner, BlockScales* to) {
    const F32x16 d = LoadHalves(outer);
    to->scale[0] = d * BytesToFloat(Signed(inner));
    to->scale[1] = d * BytesToFloat(Signed(inner + kLaneCount));
  }
};
struct SuperHalvesMinimum {  // q2_k
  static constexpr bool kTwo = true, kMinimum = true;
  static constexpr uint64_t kOuterBytes = 4, kInnerBytes = 2;
  static F32x16 Nibble(const U32x16& nibbles) {
    return MapAs<F32x16>(
        [](NativeU32 a) { return __builtin_convertvector((NativeI32)a, NativeF32); }, nibbles);
  }
  static void Load(DType, const std::byte* outer, const std::byte* inner, BlockScales* to) {
    const F32x16 d = LoadHalves(outer);
    const F32x16 d_minimum = Splat(0) - LoadHalves(outer + 2 * kLaneCount);
    for (uint64_t half = 0; half < 2; ++half) {
      const U32x16 both = WidenBytes(Unsigned(inner + half * kLaneCount));
      to->scale[half] = d * Nibble(both & 15u);
      to->minimum[half] = d_minimum * Nibble(Shift<-4>(both));
    }
  }
};
struct SuperScale {  // iq4_xs
  static constexpr bool kTwo = false, kMinimum = false;
  static constexpr uint64_t kOuterBytes = 2, kInnerBytes = 1;
  static void Load(DType, const std::byte* outer, const std::byte* inner, BlockScales* to) {
    to->scale[0] = LoadHalves(outer) * BytesToFloat(Signed(inner));
  }
};
struct E8m0Scale {  // mxfp4; half the scale, since the codes are doubled
  static constexpr bool kTwo = false, kMinimum = false;
  static constexpr uint64_t kOuterBytes = 0, kInnerBytes = 1;
  static void Load(DType, const std::byte*, const std::byte* inner, BlockScales* to) {
    to->scale[0] = MapAs<F32x16>(
        [](NativeU32 code) {
          const NativeU32 tiny = code == 0 ? NativeU32{} + 0x00200000u : NativeU32{} + 0x00400000u;
          return (NativeF32)(code < 2 ? tiny : (code - 1) << 23);
        },
        WidenBytes(Unsigned(inner)));
  }
};
struct E4m3Halves {  // nvfp4, likewise
  static constexpr bool kTwo = true, kMinimum = false;
  static constexpr uint64_t kOuterBytes = 4, kInnerBytes = 2;
  // As a rule none or all: divisions are for those that need them.
  static bool AnyNegative(const std::byte* floats) {
    uint64_t two[kLaneCount / 2], signs = 0;
    std::memcpy(two, floats, sizeof two);
    for (const uint64_t bits : two) signs |= bits;
    return (signs & 0x8000000080000000u) != 0;
  }
  static void Load(DType, const std::byte* outer, const std::byte* inner, BlockScales* to) {
    const F32x16 whole = AsFloat(LoadWords(outer));
    const bool divide = AnyNegative(outer);
    for (uint64_t half = 0; half < 2; ++half) {
      // The codes are doubled, and LoadWide gives a 256th.
      const F32x16 scale =
          LoadWide(reinterpret_cast<const Fp8*>(inner + half * kLaneCount)) * 128.0f;
      to->scale[half] =
          divide ? Map([](NativeF32 s, NativeF32 sc) { return s < 0 ? sc / -s : s * sc; }, whole,
                       scale)
                 : whole * scale;
    }
  }
};
struct MlxScaleBias {
  static constexpr bool kTwo = false, kMinimum = true;
  static constexpr uint64_t kInnerBytes = 0;
  static F32x16 Number(DType type, const std::byte* from) {
    if (type == DType::kF16) return LoadHalves(from);
    if (type == DType::kBF16) return LoadWide(reinterpret_cast<const Bf16*>(from));
    return AsFloat(LoadWords(from));
  }
  static void Load(DType type, const std::byte* outer, const std::byte*, BlockScales* to) {
    to->scale[0] = Number(type, outer);
    to->minimum[0] = Number(type, outer + (type == DType::kF32 ? 4 : 2) * kLaneCount);
  }
};

// `kZeroCode` is the code of weight zero: what is to be taken off every code.
template <typename CodesOf, typename ScalesOf, int kBytes, int kZeroCode = 0>
struct Format : ScalesOf {
  using Words = CodesOf;
  static constexpr uint64_t kCodeBytes = kBytes;
  static constexpr int32_t kZero = kZeroCode + (CodesOf::kSigned ? kSignedBytesOffset : 0);
};

// Calls body(Format<...>{}) for a format that has panels.
template <typename Body>
inline __attribute__((always_inline)) void WithFormat(const WeightFormat& format,
                                                      const Body& body) {
  switch (format.encoding) {
    case Encoding::kQ4_0:
      return body(Format<Codes<4>, HalfScale, 16, 8>{});
    case Encoding::kQ4_1:
      return body(Format<Codes<4>, HalfScaleMinimum, 16>{});
    case Encoding::kQ5_0:
      return body(Format<Codes<5>, HalfScale, 20, 16>{});
    case Encoding::kQ5_1:
      return body(Format<Codes<5>, HalfScaleMinimum, 20>{});
    case Encoding::kQ8_0:
      return body(Format<Codes<8>, HalfScale, 32>{});
    case Encoding::kQ2_K:
      return body(Format<Codes<2>, SuperHalvesMinimum, 8>{});
    case Encoding::kQ3_K:
      return body(Format<Codes<3>, SuperHalves, 12, 4>{});
    case Encoding::kQ4_K:
      return body(Format<Codes<4>, SuperScaleMinimum, 16>{});
    case Encoding::kQ5_K:
      return body(Format<Codes<5>, SuperScaleMinimum, 20>{});
    case Encoding::kQ6_K:
      return body(Format<Codes<6>, SuperHalves, 24, 32>{});
    case Encoding::kIq4Nl:
      return body(Format<Iq4Codes, HalfScale, 16>{});
    case Encoding::kIq4Xs:
      return body(Format<Iq4Codes, SuperScale, 16>{});
    case Encoding::kMxfp4:
      return body(Format<E2m1Codes, E8m0Scale, 16, kE2m1Zero>{});
    case Encoding::kNvfp4:
      return body(Format<E2m1Codes, E4m3Halves, 16, kE2m1Zero>{});
    case Encoding::kMlx:
      switch (format.bits) {
        case 2:
          return body(Format<Codes<2>, MlxScaleBias, 8>{});
        case 3:
          return body(Format<Codes<3>, MlxScaleBias, 12>{});
        case 4:
          return body(Format<Codes<4>, MlxScaleBias, 16>{});
        case 5:
          return body(Format<Codes<5>, MlxScaleBias, 20>{});
        case 6:
          return body(Format<Codes<6>, MlxScaleBias, 24>{});
        default:
          return body(Format<Codes<8>, MlxScaleBias, 32, -128>{});
      }
    case Encoding::kF32:
    case Encoding::kF16:
    case Encoding::kBF16:
    case Encoding::kFp8:
      return;  // have no panels (interleave.h)
  }
}

}  // namespace
}  // namespace lockstep::kernels
