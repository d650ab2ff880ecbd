// Attention over paged keys and values: every backend against `ref`, on every type of cache; and
// that a row's bits depend on neither threads nor steps nor the instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels {
namespace {

using testing::BackendName;
using testing::BitsOf;
using testing::Difference;
using testing::Floats;
using testing::Random;
using testing::ScatteredRows;
using testing::ScratchFor;

using AttentionKernelTest = testing::BackendTest;

// ScatteredRows of a rank that holds heads 4..8 of groups of three, so that both ends of its range
// share a KV head with a neighbour.
class AttentionCase {
 public:
  AttentionCase(std::mt19937_64& random, int64_t head_dim, CacheType type = CacheType::kF32,
                int64_t query_heads = 5, int64_t group = 3) {
    args_.rows = ScatteredRows::kRows;
    args_.query_heads = query_heads;
    args_.first_query_head = 4;
    args_.group = group;
    args_.first_kv_head = args_.first_query_head / group;
    args_.kv_heads = (args_.first_query_head + query_heads - 1) / group + 1 - args_.first_kv_head;
    args_.head_dim = head_dim;
    args_.rotary_dim = head_dim / 4 * 2;
    args_.block_tokens = ScatteredRows::kBlockTokens;
    args_.eps = 1e-5;
    args_.cache_type = type;
    cosines_ = Random(random, args_.rows * half());
    sines_ = Random(random, args_.rows * half());
    query_norm_ = Random(random, head_dim);
    key_norm_ = Random(random, head_dim);
    qkv_ = Random(random, args_.rows * width());
    pages_.keys = RandomPages(random);
    pages_.values = RandomPages(random);
  }

  struct Pages {
    std::vector<std::byte> keys, values;
    bool operator==(const Pages&) const = default;
  };
  struct Result {
    Floats out;  // [rows, query_heads * head_dim]
    Floats qkv;  // normed and turned
    Pages pages;
  };

  // Rows [first, first + count) as one step.
  Result Run(const Backend& backend, Queue& queue, int64_t first, int64_t count) const {
    return RunOver(nullptr, backend, queue, first, count);
  }
  // The same; if `pages` are given, they are complete and nothing is added to them.
  Result RunOver(const Pages* pages, const Backend& backend, Queue& queue, int64_t first,
                 int64_t count) const {
    AttentionArgs args = args_;
    args.rows = count;
    Floats scratch = ScratchFor(args, queue);
    Result result{Floats(static_cast<size_t>(count * out_width()), NAN), qkv_, pages_};
    ScatteredRows::Into(args, first);
    args.cosines = cosines_.data() + first * half();
    args.sines = sines_.data() + first * half();
    args.query_norm = query_norm_.data();
    args.key_norm = key_norm_.data();
    args.scratch = scratch.data();
    args.qkv = result.qkv.data() + first * width();
    args.key_pages = result.pages.keys.data();
    args.value_pages = result.pages.values.data();
    args.out = result.out.data();
    backend.PrepareAttention(queue, args);
    if (pages != nullptr) {
      std::copy(pages->keys.begin(), pages->keys.end(), result.pages.keys.begin());
      std::copy(pages->values.begin(), pages->values.end(), result.pages.values.begin());
    }
    backend.Attention(queue, args);
    return result;
  }
  int64_t rows() const { return args_.rows; }
  int64_t out_width() const { return args_.query_heads * args_.head_dim; }

 private:
  int64_t half() const { return args_.rotary_dim / 2; }
  int64_t width() const { return (args_.query_heads + 2 * args_.kv_heads) * args_.head_dim; }
  std::vector<std::byte> RandomPages(std::mt19937_64& random) const {
    std::vector<std::byte> pages(static_cast<size_t>(ScatteredRows::kBlocks * args_.page_bytes()));
    for (size_t at = 0; at < pages.size(); at += static_cast<size_t>(args_.row_bytes())) {
      const Floats row = Random(random, args_.head_dim);
      EncodeCacheRow(args_.cache_type, {row.data(), row.data() + args_.head_dim},
                     pages.data() + at);
    }
    return pages;
  }

  AttentionArgs args_;
  Floats cosines_, sines_, query_norm_, key_norm_, qkv_;
  Pages pages_;
};

TEST_P(AttentionKernelTest, ScatteredPagesAgreeWithRef) {
  for (const int64_t head_dim : {16, 24, 64, 128}) {
    const AttentionCase attention(random_, head_dim);
    const auto got = attention.Run(*backend_, queue_, 0, attention.rows());
    const auto want = attention.Run(*ref_, queue_, 0, attention.rows());
    EXPECT_LE(Difference(got.out, want.out), 3e-6) << head_dim;
    EXPECT_LE(Difference(got.qkv, want.qkv), 1e-6) << head_dim;
  }
}

TEST_P(AttentionKernelTest, EveryTypeOfCacheAgreesWithRefOverTheSameNumbers) {
  for (const CacheType type : testing::kCacheTypes) {
    for (const int64_t head_dim : {24, 128}) {
      const AttentionCase attention(random_, head_dim, type, 20, 12);
      const auto pages = attention.Run(*ref_, queue_, 0, attention.rows()).pages;
      const auto got = attention.RunOver(&pages, *backend_, queue_, 0, attention.rows()).out;
      const auto want = attention.RunOver(&pages, *ref_, queue_, 0, attention.rows()).out;
      EXPECT_LE(Difference(got, want), 3e-6) << NameOf(type) << " " << head_dim;
    }
  }
}

TEST_P(AttentionKernelTest, ARowIgnoresThreadsAndOtherSequences) {
  for (const CacheType type : testing::kCacheTypes) {
    const AttentionCase attention(random_, 24, type);
    const auto all = attention.Run(*backend_, single_, 0, attention.rows());
    for (const int threads : {2, 3, 7}) {
      ThreadPool pool(threads);
      Queue queue{&pool};
      const auto shared = attention.Run(*backend_, queue, 0, attention.rows());
      EXPECT_EQ(shared.out, all.out) << NameOf(type) << " " << threads << " threads";
      EXPECT_EQ(shared.pages, all.pages);
      for (const int64_t row : {0, 1, 2, 5}) {  // each the first of its sequence in the step
        const auto alone = attention.Run(*backend_, queue, row, 1);
        EXPECT_TRUE(std::equal(alone.out.begin(), alone.out.end(),
                               all.out.begin() + row * attention.out_width()))
            << NameOf(type) << " row " << row << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(AttentionKernelTest, ARowIgnoresItsStep) {
  const AttentionCase attention(random_, 64);
  const auto all = attention.Run(*backend_, queue_, 2, 3);
  const auto pages = all.pages;
  for (int64_t row = 2; row < 5; ++row) {  // rows of one sequence, over what the others left
    const auto alone = attention.RunOver(&pages, *backend_, single_, row, 1);
    EXPECT_TRUE(std::equal(alone.out.begin(), alone.out.end(),
                           all.out.begin() + (row - 2) * attention.out_width()));
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionKernelTest,
                         ::testing::ValuesIn(testing::WithDevices(
                             {"ref", "cpu", "cpu/avx512", "cpu/avx2", "cpu/baseline", "cpu/neon"})),
                         BackendName);

TEST(AttentionBits, AreThoseOfEveryInstructionSetWithFusedMultiplyAdd) {
  std::mt19937_64 random{7};
  for (const auto& [type, digest] : {std::pair{CacheType::kF32, uint64_t{0xe3fdf3a584330fc4}},
                                     {CacheType::kBF16, 0xd2d954970fd31245},
                                     {CacheType::kF16, 0x63f1a5dc0eef7216},
                                     {CacheType::kQ8, 0x2e7a18dfea40da8c}}) {
    SCOPED_TRACE(NameOf(type));
    const AttentionCase small(random, 24, type, 20, 12), usual(random, 128, type, 20, 12);
    testing::ExpectSameBitsOnEverySet(digest, [&](const Backend& backend, Queue& queue) {
      std::vector<uint64_t> bits;
      for (const AttentionCase* attention : {&small, &usual}) {
        const auto got = attention->Run(backend, queue, 0, attention->rows());
        bits.insert(bits.end(), {BitsOf(got.out), BitsOf(got.qkv), BitsOf(got.pages.keys),
                                 BitsOf(got.pages.values)});
      }
      return bits;
    });
  }
}

// The largest difference of any value, relative to the largest of its row (kQ8: of its block).
double RoundingOf(CacheType type, const Floats& row) {
  std::vector<std::byte> stored(static_cast<size_t>(CacheRowBytes(type, row.size())) + 8,
                                std::byte{0x5a});
  EncodeCacheRow(type, row, stored.data());
  for (size_t i = stored.size() - 8; i < stored.size(); ++i)
    EXPECT_EQ(stored[i], std::byte{0x5a}) << "written behind the row";
  Floats back(row.size());
  DecodeCacheRow(type, stored.data(), back);
  double worst = 0;
  for (size_t begin = 0; begin < row.size(); begin += kCacheBlock) {
    const size_t end = std::min(row.size(), begin + kCacheBlock);
    float largest = 1e-30f;
    for (size_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(row[i]));
    for (size_t i = begin; i < end; ++i)
      worst = std::max(worst, std::fabs(double{back[i]} - row[i]) / largest);
  }
  return worst;
}

TEST(CacheRow, HoldsWhatItsTypePromises) {
  std::mt19937_64 random{testing::TestSeed()};
  for (const size_t dim : {1u, 5u, 32u, 40u, 128u, 576u}) {
    Floats row = Random(random, static_cast<int64_t>(dim), 3);
    row.resize(dim);
    EXPECT_EQ(RoundingOf(CacheType::kF32, row), 0);
    EXPECT_LE(RoundingOf(CacheType::kBF16, row), 1 / 256.0);
    EXPECT_LE(RoundingOf(CacheType::kF16, row), 1 / 2048.0);
    EXPECT_LE(RoundingOf(CacheType::kQ8, row), 0.5 / 127 * 1.0001);
  }
  EXPECT_EQ(CacheRowBytes(CacheType::kQ8, 128), 144);
  EXPECT_EQ(CacheRowBytes(CacheType::kQ8, 33), 36 + 8);
}

TEST(CacheRow, KeepsNaNAndBoundsWhatHalvesCannotHold) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  std::vector<std::byte> stored(64);
  Floats back(3);
  EncodeCacheRow(CacheType::kF16, Floats{1e9f, -inf, nan}, stored.data());
  DecodeCacheRow(CacheType::kF16, stored.data(), back);
  EXPECT_EQ(back[0], 65504.0f);
  EXPECT_EQ(back[1], -65504.0f);
  EXPECT_TRUE(std::isnan(back[2]));
  for (const float bad : {inf, nan}) {
    EncodeCacheRow(CacheType::kQ8, Floats{1, bad, 3}, stored.data());
    DecodeCacheRow(CacheType::kQ8, stored.data(), back);
    EXPECT_TRUE(std::isnan(back[0]) && std::isnan(back[1]) && std::isnan(back[2]));
  }
  EncodeCacheRow(CacheType::kQ8, Floats{0, 1e-35f, -1e-38f}, stored.data());
  DecodeCacheRow(CacheType::kQ8, stored.data(), back);
  EXPECT_EQ(back, Floats(3, 0.0f));
}

TEST(CacheType, IsNamedAndOtherNamesAreRefused) {
  for (const CacheType type : testing::kCacheTypes)
    EXPECT_EQ(CacheTypeOf(NameOf(type)).value(), type);
  const Status status = CacheTypeOf("fp8").status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find("f32, bf16, f16, q8"), std::string::npos);
}

}  // namespace
}  // namespace lockstep::kernels
