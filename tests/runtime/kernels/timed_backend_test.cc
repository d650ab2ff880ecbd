// The measuring backend gives what the measured one gives, and counts what passed.
#include "runtime/kernels/timed_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "runtime/kernels/roofline.h"
#include "tests/support/deferred_backend.h"

namespace lockstep::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::unique_ptr<PackedMatrix> Pack(const Backend& backend, int64_t count, int64_t outputs,
                                   int64_t inputs) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kF32, count, outputs, inputs, "test").value();
  std::minstd_rand random(3);
  for (int64_t i = 0; i < count * outputs * inputs; ++i)
    matrix.data.as<float>()[i] = static_cast<float>(random() % 100);
  const uint64_t planned = backend.PackedBytes(matrix);
  auto packed = backend.Pack(std::move(matrix)).value();
  EXPECT_EQ(packed->bytes(), planned);
  return packed;
}

TEST(TimedBackend, ProductsAreThoseOfTheMeasuredBackendAndAreCountedBySize) {
  ThreadPool pool(2);
  Queue queue{&pool};
  const auto plain = MakeBackend("ref").value();
  TimedBackend timed(MakeBackend("ref").value());
  EXPECT_EQ(timed.name(), plain->name());
  const auto wide = Pack(timed, 1, 5, 8), narrow = Pack(timed, 1, 5, 6),
             stack = Pack(timed, 3, 4, 8);
  const std::vector<float> x(64, 0.5f);
  std::vector<float> expected(64), got(64);
  for (int round = 0; round < 3; ++round) {
    plain->MatMul(queue, *wide, nullptr, x.data(), 2, expected.data(), 5);
    timed.MatMul(queue, *wide, nullptr, x.data(), 2, got.data(), 5);
    EXPECT_EQ(got, expected);
  }
  timed.MatMul(queue, *narrow, nullptr, x.data(), 1, got.data(), 5);
  RowGroup group_list[] = {{0, 0, 2}, {2, 2, 5}};
  int32_t used = 2;
  const ExpertGroups groups{group_list, &used, nullptr, nullptr};
  timed.GroupedMatMul(queue, *stack, groups, x.data(), false, got.data(), 4);

  ASSERT_EQ(timed.times().size(), 3u);
  const OpTime& first = timed.times()[0];
  EXPECT_STREQ(first.op, "matmul");
  EXPECT_EQ(first.outputs, 5);
  EXPECT_EQ(first.inputs, 8);
  EXPECT_EQ(first.calls, 3);
  EXPECT_EQ(first.bytes, 3 * wide->bytes());
  EXPECT_EQ(first.operations, 3u * 2 * 2 * 5 * 8);
  EXPECT_GT(first.ns, 0);
  const OpTime& grouped = timed.times()[2];
  EXPECT_STREQ(grouped.op, "grouped_matmul");
  // Two of the three matrices, and five assignments.
  EXPECT_EQ(grouped.bytes, stack->bytes() / 3 * 2);
  EXPECT_EQ(grouped.operations, 2u * 5 * 4 * 8);
  timed.Reset();
  EXPECT_TRUE(timed.times().empty());
}

TEST(TimedBackend, AttentionCountsTheCacheOnceASequenceAndOperationsForEachRow) {
  // Two rows of one sequence, at positions 2 and 3, and one of another at position 4.
  const int32_t positions[] = {2, 3, 4}, sequences[] = {0, 0, 1};
  const int32_t blocks[] = {0, 1};
  const int32_t* const tables[] = {&blocks[0], &blocks[1]};
  ThreadPool pool(1);
  Queue queue{&pool};
  TimedBackend timed(MakeBackend("ref").value());
  const auto floats = [](int64_t count) {
    return Buffer::Allocate(static_cast<uint64_t>(count) * sizeof(float), "test").value();
  };
  AttentionArgs args{.rows = 3,
                     .query_heads = 4,
                     .kv_heads = 2,
                     .group = 2,
                     .head_dim = 8,
                     .block_tokens = 16,
                     .positions = positions,
                     .sequences = sequences,
                     .block_tables = tables};
  Buffer qkv = floats(3 * 8 * 8), keys = floats(2 * 2 * 16 * 8), values = floats(2 * 2 * 16 * 8),
         scratch = floats(ScratchOf(args, 1).floats()), out = floats(3 * 4 * 8);
  args.qkv = qkv.as<float>();
  args.key_pages = keys.as<std::byte>();
  args.value_pages = values.as<std::byte>();
  args.scratch = scratch.as<float>();
  args.out = out.as<float>();
  timed.Attention(queue, args);
  const int64_t row_bytes = 8 * 4;
  EXPECT_EQ(timed.times()[0].bytes, 2u * (4 + 5) * 2 * row_bytes);
  EXPECT_EQ(timed.times()[0].operations, 4u * (3 + 4 + 5) * 4 * 8);
  timed.Reset();
  LatentAttentionArgs latent{.rows = 3,
                             .heads = 5,
                             .rope_dim = 8,
                             .latent_dim = 16,
                             .block_tokens = 16,
                             .positions = positions,
                             .sequences = sequences,
                             .block_tables = tables};
  Buffer plain = floats(3 * 5 * 16), rotated = floats(3 * 5 * 8), pages = floats(2 * 16 * 24),
         work = floats(ScratchOf(latent, 1).floats()), sums = floats(3 * 5 * 16);
  latent.absorbed_queries = plain.as<float>();
  latent.rotated_queries = rotated.as<float>();
  latent.pages = pages.as<std::byte>();
  latent.scratch = work.as<float>();
  latent.out = sums.as<float>();
  timed.LatentAttention(queue, latent);
  EXPECT_EQ(timed.times()[0].bytes, (4u + 5) * (16 + 8) * 4);
  EXPECT_EQ(timed.times()[0].operations, 2u * (3 + 4 + 5) * 5 * (16 + 16 + 8));
}

TEST(TimedBackend, MoreSizesThanItHasRoomForShareOneEntry) {
  ThreadPool pool(1);
  Queue queue{&pool};
  TimedBackend timed(MakeBackend("ref").value());
  const std::vector<float> x(8, 1.0f);
  std::vector<float> y(200);
  int64_t calls = 0;
  for (int64_t outputs = 1; outputs <= 100; ++outputs) {
    const auto matrix = Pack(timed, 1, outputs, 4);
    timed.MatMul(queue, *matrix, nullptr, x.data(), 1, y.data(), outputs);
  }
  ASSERT_EQ(timed.times().size(), 64u);
  EXPECT_STREQ(timed.times().back().op, "others");
  for (const OpTime& time : timed.times()) calls += time.calls;
  EXPECT_EQ(calls, 100);
}

TEST(TimedBackend, WaitsForOpsThatItTimesAndForNoOthers) {
  ThreadPool pool(1);
  Queue queue{&pool};
  TimedBackend timed(std::make_unique<lockstep::testing::DeferredBackend>(
      MakeBackend("ref").value(), lockstep::testing::DeferredOptions{}));
  const auto matrix = Pack(timed, 1, 3, 4);
  const std::vector<float> x(8, 1.0f);
  std::vector<float> y(3);
  timed.SetTimed(false);
  timed.MatMul(queue, *matrix, nullptr, x.data(), 1, y.data(), 3);
  EXPECT_TRUE(timed.times().empty());
  EXPECT_EQ(y, std::vector<float>(3));
  EXPECT_TRUE(timed.Finish(queue).ok());
  EXPECT_NE(y, std::vector<float>(3));
  y.assign(3, 0);
  timed.SetTimed(true);
  timed.MatMul(queue, *matrix, nullptr, x.data(), 1, y.data(), 3);
  EXPECT_EQ(timed.times().size(), 1u);
  EXPECT_NE(y, std::vector<float>(3));
}

TEST(TimedBackend, TellsAFaultOfAnOpWhenTheQueueIsFinished) {
  ThreadPool pool(1);
  Queue queue{&pool};
  TimedBackend timed(std::make_unique<lockstep::testing::DeferredBackend>(
      MakeBackend("ref").value(), lockstep::testing::DeferredOptions{.failing = 1}));
  const auto matrix = Pack(timed, 1, 3, 4);
  const std::vector<float> x(8, 1.0f);
  std::vector<float> y(3);
  timed.MatMul(queue, *matrix, nullptr, x.data(), 1, y.data(), 3);
  timed.MatMul(queue, *matrix, nullptr, x.data(), 1, y.data(), 3);
  EXPECT_THAT(MessageOf(timed.Finish(queue)), HasSubstr("gave up"));
  EXPECT_TRUE(timed.Finish(queue).ok());
}

TEST(Roofline, ThePeakIsThatOfTheBackendsProducts) {
  ThreadPool pool(1);
  const struct {
    const char* set;
    const char *exact, *fast;  // parts of the instructions' names
  } cases[] = {{"ref", "float64", "float64"},
               {"cpu/avx512vnni", "vfmadd zmm", "vpdpbusd zmm"},
               {"cpu/avx512", "vfmadd zmm", "vpmaddubsw"},
               {"cpu/avx2", "vfmadd ymm", "vpmaddubsw"},
               {"cpu/baseline", "mulps", "pmaddwd"},
               {"cpu/i8mm", "fmla", "smmla"},
               {"cpu/dotprod", "fmla", "sdot"},
               {"cpu/neon", "fmla", "mla 128 bits"}};
  for (const auto& [set, exact, fast] : cases) {
    for (const Precision precision : {Precision::kExact, Precision::kFast}) {
      const auto backend = MakeBackend(set, precision);
      if (!backend.ok()) continue;  // not here
      const PeakArithmetic peak = MeasurePeak((*backend)->product_loop(), pool);
      EXPECT_THAT(peak.instruction, HasSubstr(precision == Precision::kExact ? exact : fast));
      // From the slowest emulation to more than any core has: a loop that the compiler took away
      // would be beyond.
      EXPECT_GT(peak.gop_per_s, 0.001) << peak.instruction;
      EXPECT_LT(peak.gop_per_s, 2000) << peak.instruction;
    }
  }
}

TEST(Roofline, EveryThreadReadsAPartOfItsOwn) {
  ThreadPool pool(2);
  ReadTest test = ReadTest::Create(pool, uint64_t{8} << 20).value();
  EXPECT_EQ(test.bytes(), uint64_t{16} << 20);
  const double gb_per_s = static_cast<double>(test.bytes()) / test.FastestPass(pool) * 1e-9;
  EXPECT_GT(gb_per_s, 0.001);
  EXPECT_LT(gb_per_s, 5000);
}

}  // namespace
}  // namespace lockstep::kernels
