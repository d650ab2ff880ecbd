// Latent attention: every backend against `ref`, `ref` against attention over keys and values that
// are really made, and the promise that neither rows nor heads see each other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
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

using LatentKernels = testing::BackendTest;

struct Dims {
  int64_t latent, rope, nope;
};

// ScatteredRows over a cache of latents.
class LatentCase {
 public:
  LatentCase(std::mt19937_64& random, const Dims& dims, int64_t heads,
             CacheType type = CacheType::kF32) {
    args_.rows = ScatteredRows::kRows;
    args_.heads = heads;
    args_.latent_dim = dims.latent;
    args_.rope_dim = dims.rope;
    args_.nope_dim = dims.nope;
    args_.block_tokens = ScatteredRows::kBlockTokens;
    args_.eps = 1e-6;
    args_.cache_type = type;
    cosines_ = Random(random, args_.rows * dims.rope / 2);
    sines_ = Random(random, args_.rows * dims.rope / 2);
    norm_ = Random(random, dims.latent);
    latents_ = Random(random, args_.rows * width());
    queries_ = Random(random, args_.rows * heads * head_dim());
    absorbed_ = Random(random, heads * args_.rows * dims.latent, 0.3f);
    const Floats stored = Random(random, ScatteredRows::kBlocks * args_.block_tokens * width());
    pages_.resize(static_cast<size_t>(ScatteredRows::kBlocks * args_.page_bytes()));
    for (int64_t i = 0; i < ScatteredRows::kBlocks * args_.block_tokens; ++i) {
      const float* from = stored.data() + i * width();
      std::byte* to = pages_.data() + i * args_.row_bytes();
      EncodeCacheRow(type, {from, from + dims.latent}, to);
      EncodeCacheRow(type, {from + dims.latent, from + width()}, to + args_.latent_bytes());
    }
  }

  struct Result {
    Floats out;
    std::vector<std::byte> pages;
    Floats latents, plain, rotated;
  };

  // Rows [first, first + count) as one step.
  Result Run(const Backend& backend, Queue& queue, int64_t first, int64_t count) const {
    return RunWith(pages_, backend, queue, first, count, true);
  }
  // All rows over pages that are complete.
  Floats RunOver(const std::vector<std::byte>& pages, const Backend& backend, Queue& queue) const {
    return RunWith(pages, backend, queue, 0, args_.rows, false).out;
  }
  // What row `row` of all heads has in a head-major result of `rows` rows.
  Floats RowOf(const Floats& values, int64_t rows, int64_t row) const {
    const int64_t dim = args_.latent_dim;
    Floats mine;
    for (int64_t head = 0; head < args_.heads; ++head) {
      const auto from = values.begin() + (head * rows + row) * dim;
      mine.insert(mine.end(), from, from + dim);
    }
    return mine;
  }
  // The same case with one of its heads alone.
  LatentCase OnlyHead(int64_t head) const {
    LatentCase one = *this;
    one.args_.heads = 1;
    one.queries_.clear();
    for (int64_t row = 0; row < args_.rows; ++row) {
      const auto from = queries_.begin() + (row * args_.heads + head) * head_dim();
      one.queries_.insert(one.queries_.end(), from, from + head_dim());
    }
    const auto from = absorbed_.begin() + head * args_.rows * args_.latent_dim;
    one.absorbed_.assign(from, from + args_.rows * args_.latent_dim);
    return one;
  }
  int64_t rows() const { return args_.rows; }

 private:
  Result RunWith(const std::vector<std::byte>& pages, const Backend& backend, Queue& queue,
                 int64_t first, int64_t count, bool store) const {
    LatentAttentionArgs args = args_;
    const auto heads_rows = static_cast<size_t>(args.heads * count);
    Result result{Floats(heads_rows * args.latent_dim, NAN), pages, latents_,
                  Floats(heads_rows * args.nope_dim, NAN), Floats(heads_rows * args.rope_dim, NAN)};
    const Floats absorbed = Absorbed(first, count);
    args.rows = count;
    Floats scratch = ScratchFor(args, queue);
    ScatteredRows::Into(args, first);
    args.cosines = cosines_.data() + first * args.rope_dim / 2;
    args.sines = sines_.data() + first * args.rope_dim / 2;
    args.latent_norm = norm_.data();
    args.latents = result.latents.data() + first * width();
    args.queries = queries_.data() + first * args.heads * head_dim();
    args.plain_queries = result.plain.data();
    args.rotated_queries = result.rotated.data();
    args.absorbed_queries = absorbed.data();
    args.pages = result.pages.data();
    args.scratch = scratch.data();
    args.out = result.out.data();
    backend.PrepareLatentAttention(queue, args);
    if (!store) result.pages = pages;
    backend.LatentAttention(queue, args);
    return result;
  }
  int64_t width() const { return args_.latent_dim + args_.rope_dim; }
  int64_t head_dim() const { return args_.nope_dim + args_.rope_dim; }
  Floats Absorbed(int64_t first, int64_t count) const {
    Floats some;
    for (int64_t head = 0; head < args_.heads; ++head) {
      const auto from = absorbed_.begin() + (head * args_.rows + first) * args_.latent_dim;
      some.insert(some.end(), from, from + count * args_.latent_dim);
    }
    return some;
  }

  LatentAttentionArgs args_;
  Floats cosines_, sines_, norm_, latents_, queries_, absorbed_;
  std::vector<std::byte> pages_;
};

TEST_P(LatentKernels, AgreeWithRefOnAwkwardShapes) {
  for (const Dims& dims : {Dims{32, 8, 24}, Dims{512, 64, 192}, Dims{40, 6, 20}, Dims{5, 2, 1}}) {
    for (const int64_t heads : {1, 4, 5, 7}) {
      const LatentCase attention(random_, dims, heads);
      const auto got = attention.Run(*backend_, queue_, 0, attention.rows());
      const auto want = attention.Run(*ref_, queue_, 0, attention.rows());
      EXPECT_LE(Difference(got.out, want.out), 1e-5) << dims.latent << " " << heads;
      EXPECT_LE(Difference(got.latents, want.latents), 1e-6) << dims.latent << " " << heads;
      EXPECT_EQ(got.plain, want.plain);
      EXPECT_LE(Difference(got.rotated, want.rotated), 1e-6) << dims.latent << " " << heads;
    }
  }
}

TEST_P(LatentKernels, AgreeWithRefOnEveryTypeOfCache) {
  for (const CacheType type : testing::kCacheTypes) {
    for (const Dims& dims : {Dims{512, 64, 192}, Dims{40, 6, 20}, Dims{5, 2, 1}}) {
      const LatentCase attention(random_, dims, 5, type);
      // Of one kind of stored numbers: rounding the new ones would turn last bits into steps.
      const auto pages = attention.Run(*ref_, queue_, 0, attention.rows()).pages;
      const auto got = attention.RunOver(pages, *backend_, queue_);
      const auto want = attention.RunOver(pages, *ref_, queue_);
      EXPECT_LE(Difference(got, want), 1e-5) << NameOf(type) << " " << dims.latent;
    }
  }
}

TEST_P(LatentKernels, ARowsBitsIgnoreThreadsAndOtherRows) {
  const LatentCase attention(random_, Dims{40, 6, 20}, 5);
  const auto all = attention.Run(*backend_, queue_, 0, attention.rows());
  const auto single = attention.Run(*backend_, single_, 0, attention.rows());
  EXPECT_EQ(single.out, all.out);
  EXPECT_EQ(single.pages, all.pages);
  for (const int64_t row : {0, 1, 2, 5}) {  // each the first of its sequence in the step
    const auto alone = attention.Run(*backend_, queue_, row, 1);
    EXPECT_EQ(alone.out, attention.RowOf(all.out, attention.rows(), row)) << row;
  }
}

TEST_P(LatentKernels, AHeadsBitsIgnoreTheHeadsBesideIt) {
  const LatentCase attention(random_, Dims{512, 64, 192}, 7);
  const auto all = attention.Run(*backend_, queue_, 0, attention.rows());
  const size_t part = all.out.size() / 7;
  for (int64_t head = 0; head < 7; ++head) {
    const auto alone = attention.OnlyHead(head).Run(*backend_, queue_, 0, attention.rows());
    EXPECT_TRUE(std::equal(alone.out.begin(), alone.out.end(), all.out.begin() + head * part))
        << head;
    EXPECT_EQ(alone.pages, all.pages);
  }
}

TEST_P(LatentKernels, JoinHeadsTurnsHeadMajorIntoRows) {
  const int64_t heads = 3, rows = 5, dim = 7;
  const Floats x = Random(random_, heads * rows * dim);
  Floats y(static_cast<size_t>(heads * rows * dim), NAN);
  backend_->JoinHeads(queue_, x.data(), heads, rows, dim, y.data());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < dim; ++i)
        EXPECT_EQ(y[(row * heads + head) * dim + i], x[(head * rows + row) * dim + i]);
    }
  }
}

TEST(LatentBits, AreThoseOfEveryInstructionSetWithFusedMultiplyAdd) {
  std::mt19937_64 random{7};
  for (const auto& [type, digest] : {std::pair{CacheType::kF32, uint64_t{0x2c9d25a4d8c093ab}},
                                     {CacheType::kBF16, 0x6b9153859b3b9e1e},
                                     {CacheType::kF16, 0xa809d16e4ac0abbb},
                                     {CacheType::kQ8, 0xeefa3d31db7554b0}}) {
    SCOPED_TRACE(NameOf(type));
    const LatentCase small(random, Dims{40, 6, 20}, 5, type),
        usual(random, Dims{512, 64, 192}, 20, type);
    testing::ExpectSameBitsOnEverySet(digest, [&](const Backend& backend, Queue& queue) {
      std::vector<uint64_t> bits;
      for (const LatentCase* attention : {&small, &usual}) {
        const auto got = attention->Run(backend, queue, 0, attention->rows());
        bits.insert(bits.end(), {BitsOf(got.out), BitsOf(got.latents), BitsOf(got.plain),
                                 BitsOf(got.rotated), BitsOf(got.pages)});
      }
      return bits;
    });
  }
}

// One sequence of `count` tokens, one head: softmax(q k / sqrt(n + r)) v with k = [K latent, key]
// and v = V latent made for every token, in double precision, for the last token.
std::vector<double> Expanded(const std::vector<double>& query, const std::vector<Floats>& stored,
                             const Floats& key_rows, const Floats& value_rows, const Dims& dims,
                             int64_t value_dim) {
  const auto times = [&](const Floats& matrix, int64_t row, const Floats& latent) {
    double sum = 0;
    for (int64_t i = 0; i < dims.latent; ++i)
      sum += double{matrix[row * dims.latent + i]} * latent[i];
    return sum;
  };
  std::vector<double> result(static_cast<size_t>(value_dim));
  double total = 0;
  for (const Floats& token : stored) {
    double dot = 0;
    for (int64_t i = 0; i < dims.nope; ++i) dot += query[i] * times(key_rows, i, token);
    for (int64_t i = 0; i < dims.rope; ++i) dot += query[dims.nope + i] * token[dims.latent + i];
    const double weight = std::exp(dot / std::sqrt(static_cast<double>(dims.nope + dims.rope)));
    total += weight;
    for (int64_t i = 0; i < value_dim; ++i) result[i] += weight * times(value_rows, i, token);
  }
  for (double& value : result) value /= total;
  return result;
}

TEST_P(LatentKernels, AbsorbedWeightsGiveWhatExpandedKeysAndValuesGive) {
  const Dims dims{24, 6, 10};
  const int64_t tokens = 37, value_dim = 9, width = dims.latent + dims.rope;
  const Floats norm(24, 1.0f);
  Floats latents = Random(random_, tokens * width);
  const Floats queries = Random(random_, tokens * (dims.nope + dims.rope));
  const Floats key_rows = Random(random_, dims.nope * dims.latent, 0.2f);  // [n, L]
  const Floats value_rows = Random(random_, value_dim * dims.latent, 0.2f);
  const Floats cosines(static_cast<size_t>(tokens * dims.rope / 2), 1.0f);
  const Floats sines(cosines.size(), 0.0f);
  HostMatrix transposed =
      HostMatrix::Allocate(DType::kF32, 1, dims.latent, dims.nope, "test").value();
  for (int64_t i = 0; i < dims.nope; ++i) {
    for (int64_t j = 0; j < dims.latent; ++j)
      transposed.data.as<float>()[j * dims.nope + i] = key_rows[i * dims.latent + j];
  }
  const auto absorb = backend_->Pack(std::move(transposed)).value();
  std::vector<int32_t> positions, sequences(tokens, 0), table = {0, 1, 2};
  for (int32_t i = 0; i < tokens; ++i) positions.push_back(i);
  const int32_t* const tables[] = {table.data()};
  Floats plain(static_cast<size_t>(tokens * dims.nope + 16)), rotated(plain.size()),
      absorbed(static_cast<size_t>(tokens * dims.latent + 16)), out(absorbed.size()),
      pages(static_cast<size_t>(48 * width + 16));
  LatentAttentionArgs args{tokens, 1, dims.nope, dims.rope, dims.latent, 16, 1e-6};
  args.positions = positions.data();
  args.sequences = sequences.data();
  args.block_tables = tables;
  args.cosines = cosines.data();
  args.sines = sines.data();
  args.latent_norm = norm.data();
  args.latents = latents.data();
  args.queries = queries.data();
  args.plain_queries = plain.data();
  args.rotated_queries = rotated.data();
  args.absorbed_queries = absorbed.data();
  args.pages = reinterpret_cast<std::byte*>(pages.data());
  Floats scratch = ScratchFor(args, queue_);
  args.scratch = scratch.data();
  args.out = out.data();
  backend_->PrepareLatentAttention(queue_, args);
  backend_->MatMul(queue_, *absorb, nullptr, plain.data(), tokens, absorbed.data(), dims.latent);
  backend_->LatentAttention(queue_, args);

  std::vector<Floats> stored;  // one block after the other: the table is 0, 1, 2
  for (int64_t i = 0; i < tokens; ++i)
    stored.emplace_back(pages.begin() + i * width, pages.begin() + (i + 1) * width);
  const auto query = queries.begin() + (tokens - 1) * (dims.nope + dims.rope);
  const auto want = Expanded({query, query + dims.nope + dims.rope}, stored, key_rows, value_rows,
                             dims, value_dim);
  for (int64_t i = 0; i < value_dim; ++i) {
    double got = 0;
    for (int64_t j = 0; j < dims.latent; ++j)
      got += double{value_rows[i * dims.latent + j]} * out[(tokens - 1) * dims.latent + j];
    EXPECT_NEAR(got, want[i], 2e-6) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, LatentKernels,
                         ::testing::ValuesIn(testing::WithDevices({"ref", "cpu/avx512", "cpu/avx2",
                                                                   "cpu/baseline", "cpu/neon"})),
                         BackendName);

}  // namespace
}  // namespace lockstep::kernels
