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
#include "tests/support/seed.h"

namespace lockstep::kernels {
namespace {

using Floats = std::vector<float>;

Floats Random(std::mt19937_64& random, int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Floats values(static_cast<size_t>(count) + 16);
  for (float& value : values) value = normal(random);
  return values;
}

// Largest |a - b| over the largest |b|.
double Difference(const Floats& a, const Floats& b) {
  double largest = 1e-30, difference = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::fabs(double{b[i]}));
    difference = std::max(difference, std::fabs(double{a[i]} - b[i]));
    if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
  }
  return difference / largest;
}

struct Dims {
  int64_t latent, rope, nope;
};

// Six rows of four sequences over scattered pages of sixteen positions.
class LatentCase {
 public:
  LatentCase(std::mt19937_64& random, const Dims& dims, int64_t heads) {
    args_.rows = 6;
    args_.heads = heads;
    args_.latent_dim = dims.latent;
    args_.rope_dim = dims.rope;
    args_.nope_dim = dims.nope;
    args_.block_tokens = 16;
    args_.eps = 1e-6;
    args_.score_stride = 48;
    for (const auto& table : tables_) table_pointers_.push_back(table.data());
    cosines_ = Random(random, args_.rows * dims.rope / 2);
    sines_ = Random(random, args_.rows * dims.rope / 2);
    norm_ = Random(random, dims.latent);
    latents_ = Random(random, args_.rows * width());
    queries_ = Random(random, args_.rows * heads * head_dim());
    absorbed_ = Random(random, heads * args_.rows * dims.latent, 0.3f);
    pages_ = Random(random, 10 * args_.block_tokens * width());
  }

  struct Result {
    Floats out, pages, plain, rotated;
  };

  // Rows [first, first + count) as one step.
  Result Run(const Backend& backend, Queue& queue, int64_t first, int64_t count) const {
    LatentAttentionArgs args = args_;
    const auto heads_rows = static_cast<size_t>(args.heads * count);
    Result result{Floats(heads_rows * args.latent_dim, NAN), pages_,
                  Floats(heads_rows * args.nope_dim, NAN), Floats(heads_rows * args.rope_dim, NAN)};
    Floats scores(static_cast<size_t>(3 * kLatentHeads * args.score_stride), NAN);
    const Floats absorbed = Absorbed(first, count);
    args.rows = count;
    args.positions = positions_.data() + first;
    args.sequences = sequences_.data() + first;
    args.block_tables = table_pointers_.data();
    args.cosines = cosines_.data() + first * args.rope_dim / 2;
    args.sines = sines_.data() + first * args.rope_dim / 2;
    args.latent_norm = norm_.data();
    args.latents = latents_.data() + first * width();
    args.queries = queries_.data() + first * args.heads * head_dim();
    args.plain_queries = result.plain.data();
    args.rotated_queries = result.rotated.data();
    args.absorbed_queries = absorbed.data();
    args.pages = result.pages.data();
    args.scores = scores.data();
    args.out = result.out.data();
    backend.PrepareLatentAttention(queue, args);
    backend.LatentAttention(queue, args);
    return result;
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
  // The same case with one of its heads alone; points into this one's tables.
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

  const std::vector<int32_t> positions_ = {0, 40, 15, 16, 17, 33};
  const std::vector<int32_t> sequences_ = {0, 1, 2, 2, 2, 3};
  const std::vector<std::vector<int32_t>> tables_ = {{7}, {3, 0, 9}, {5, 1}, {2, 8, 4}};
  std::vector<const int32_t*> table_pointers_;
  LatentAttentionArgs args_;
  Floats cosines_, sines_, norm_, latents_, queries_, absorbed_, pages_;
};

class LatentKernels : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<Backend>> made = MakeBackend(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status();
    backend_ = std::move(*made);
  }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> ref_ = MakeRefBackend();
  ThreadPool one_{1};
  ThreadPool three_{3};
  Queue queue_{&three_};
  Queue single_{&one_};
  std::mt19937_64 random_{lockstep::testing::TestSeed()};
};

TEST_P(LatentKernels, AgreeWithRefOnAwkwardShapes) {
  for (const Dims& dims : {Dims{32, 8, 24}, Dims{512, 64, 192}, Dims{40, 6, 20}, Dims{5, 2, 1}}) {
    for (const int64_t heads : {1, 4, 5, 7}) {
      const LatentCase attention(random_, dims, heads);
      const auto got = attention.Run(*backend_, queue_, 0, attention.rows());
      const auto want = attention.Run(*ref_, queue_, 0, attention.rows());
      EXPECT_LE(Difference(got.out, want.out), 1e-5) << dims.latent << " " << heads;
      EXPECT_LE(Difference(got.pages, want.pages), 1e-6) << dims.latent << " " << heads;
      EXPECT_EQ(got.plain, want.plain);
      EXPECT_LE(Difference(got.rotated, want.rotated), 1e-6) << dims.latent << " " << heads;
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
  const Floats latents = Random(random_, tokens * width), norm(24, 1.0f);
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
      pages(static_cast<size_t>(48 * width + 16)), scores(3 * kLatentHeads * 48);
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
  args.pages = pages.data();
  args.scores = scores.data();
  args.score_stride = 48;
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
                         ::testing::Values("ref", "cpu/avx512", "cpu/avx2", "cpu/baseline"),
                         [](const auto& suite) {
                           std::string name = suite.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

}  // namespace
}  // namespace lockstep::kernels
