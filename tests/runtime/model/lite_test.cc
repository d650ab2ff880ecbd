// GLM-4.7-Flash's network, whose attention reads latents, against transformers' float32 results: on
// every kernel set and at every number of ranks, from safetensors and from GGUF.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/cache_types.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/sequences.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Collected;
using testing::Golden;
using ::testing::HasSubstr;
using testing::LastLogits;
using testing::OpenModel;
using testing::RelativeError;
using testing::RunRanks;
using testing::RunTogether;
using testing::Sequence;
using testing::SourcePath;
using testing::TestModel;
using testing::TestModelOptions;

struct Case {
  std::string kernels;
  int ranks;
  std::vector<double> shares;
  std::string collective = "tcp";
  int threads = 1;
  std::string file = "tiny-flash";
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.file << ", " << c.kernels; }

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return testing::CaseName(c.file + "_" + c.kernels + "_" + std::to_string(c.ranks) +
                               (c.shares.empty() ? "_even" : "_uneven"),
                           info.index);
}

Golden Flash() { return Golden(SourcePath("tests/goldens/goldens/tiny-flash.safetensors")); }

class FlashModel : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto backend = kernels::MakeBackend(GetParam().kernels);
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  }
  // Runs `sequences` on all ranks, `step` tokens of each at a time; per rank what came out.
  static std::vector<Collected> Run(const std::vector<Sequence>& sequences, int step,
                                    int threads = 0,
                                    kernels::Precision precision = kernels::Precision::kExact) {
    const Case& c = GetParam();
    std::vector<Collected> results(static_cast<size_t>(c.ranks));
    RunRanks(c.ranks, c.collective, [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath("tests/goldens/models/" + c.file);
      options.kernels = c.kernels;
      options.shares = c.shares;
      options.threads = threads > 0 ? threads : c.threads;
      options.precision = precision;
      TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      results[static_cast<size_t>(group.rank())] = RunTogether(*model.model, sequences, step);
    });
    return results;
  }
  // Measured: 2e-6, which is the difference between two float32 orders. The other epsilon of the
  // latents' norms would be at 2e-5.
  static double Tolerance() { return 1e-5; }
};

TEST_P(FlashModel, LogitsAndHiddenStatesAgreeWithTransformers) {
  const Golden golden = Flash();
  const auto ranks = Run({{golden.Ids("main.input_ids"), 0}}, 0);
  const double error = RelativeError(LastLogits(ranks, 0, 40), golden.Floats("main.logits"));
  RecordProperty("relative_error", std::to_string(error));
  EXPECT_LE(error, Tolerance());
  EXPECT_LE(RelativeError(ranks[0].hidden[0], golden.Floats("main.hidden.final_norm")),
            Tolerance());
  for (const Collected& rank : ranks) {
    EXPECT_EQ(rank.hidden, ranks[0].hidden) << "ranks hold different bits";
    EXPECT_EQ(rank.digests, ranks[0].digests);
  }
}

TEST_P(FlashModel, ALongPromptAgreesWithTransformersAtItsEnd) {
  const Golden golden = Flash();
  const auto ranks = Run({{golden.Ids("long.input_ids"), 0}}, 100);
  EXPECT_LE(RelativeError(LastLogits(ranks, 0, 1), golden.Floats("long.last_logits")), Tolerance());
}

TEST_P(FlashModel, StepsBatchesAndThreadsChangeNoBit) {
  const Golden golden = Flash();
  std::vector<Sequence> together;
  for (int b = 0; b < 3; ++b)
    together.push_back({golden.Ids("batch." + std::to_string(b) + ".input_ids"), b * 40});
  for (const auto precision : {kernels::Precision::kExact, kernels::Precision::kFast}) {
    const bool fast = precision == kernels::Precision::kFast;
    if (fast && GetParam().ranks != 2) continue;  // one number of ranks is enough
    if (!kernels::MakeBackend(GetParam().kernels, precision).ok()) continue;
    const auto batched = Run(together, 0, 0, precision);
    for (const int step : {1, 3, 7}) {
      const auto stepped = Run(together, step, step == 3 ? 3 : 1, precision);
      for (size_t rank = 0; rank < batched.size(); ++rank)
        EXPECT_EQ(stepped[rank].logits, batched[rank].logits)
            << "step " << step << " rank " << rank;
    }
    for (size_t b = 0; b < together.size(); ++b) {
      const auto alone = Run({together[b]}, 0, 0, precision);
      for (size_t rank = 0; rank < batched.size(); ++rank)
        EXPECT_EQ(alone[rank].logits[0], batched[rank].logits[b]) << "sequence " << b;
      if (fast) continue;
      EXPECT_LE(RelativeError(LastLogits(alone, 0, 1),
                              golden.Floats("batch." + std::to_string(b) + ".last_logits")),
                Tolerance());
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases = {{"ref", 1, {}}, {"ref", 2, {1, 4}}};
  for (const int ranks : {1, 2, 3, 4, 5}) cases.push_back({"cpu", ranks, {}});
  cases.push_back({"cpu", 1, {}, "tcp", 3});
  cases.push_back({"cpu/avx2", 2, {3, 2}, "shm", 2});
  cases.push_back({"cpu/baseline", 3, {5, 1, 2}});
  cases.push_back({"cpu", 3, {1, 0, 1}});  // one rank without heads
  cases.push_back({"cpu", 5, {0.1, 1, 3, 0.2, 1}, "shm"});
  // The weights are exact in F16, heads lie in tensors of their own.
  for (const int ranks : {1, 3})
    cases.push_back({"cpu", ranks, {}, "tcp", 1, "tiny-flash-F16.gguf"});
  cases.push_back({"cpu", 3, {1, 0, 2}, "tcp", 1, "tiny-flash-F16.gguf"});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Ranks, FlashModel, ::testing::ValuesIn(Cases()), NameOf);

TEST(Flash, CacheTypesKeepNearTheReferenceAndChangeNoBitByStep) {
  testing::CheckCacheTypes("tiny-flash", 40);
}

TEST(Flash, GreedyTokensAreThoseOfTransformers) {
  const Golden golden = Flash();
  const std::vector<int32_t> want = golden.Ids("greedy.new_ids");
  for (const int ranks : {1, 3, 5}) {
    std::vector<int32_t> tokens = golden.Ids("greedy.prompt_ids");
    const auto prompt = tokens.size();
    tokens.insert(tokens.end(), want.begin(), want.end() - 1);
    std::vector<Collected> results(static_cast<size_t>(ranks));
    RunRanks(ranks, "tcp", [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath("tests/goldens/models/tiny-flash");
      const TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      results[static_cast<size_t>(group.rank())] = RunTogether(*model.model, {{tokens, 0}}, 1);
    });
    const auto logits = LastLogits(results, 0, static_cast<int64_t>(want.size()));
    EXPECT_LE(RelativeError(logits, golden.Floats("greedy.logits")), 2e-5);
    for (size_t i = 0; i < want.size(); ++i) {
      const auto row = logits.begin() + static_cast<ptrdiff_t>(i * 1000);
      EXPECT_EQ(std::max_element(row, row + 1000) - row, want[i]) << "token " << prompt + i;
    }
  }
}

TEST(Flash, GgufAgreesWithTheReferenceOverItsOwnWeights) {
  const Golden golden(SourcePath("tests/goldens/goldens/quantized.safetensors"));
  std::vector<int32_t> tokens = golden.Ids("tiny-flash.input_ids");
  const std::vector<int32_t> greedy = golden.Ids("tiny-flash-F16.gguf.greedy16");
  const auto want = golden.Floats("tiny-flash-F16.gguf.logits_last12");
  std::vector<int32_t> followed(tokens.begin(), tokens.begin() + 12);
  followed.insert(followed.end(), greedy.begin(), greedy.end() - 1);
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = SourcePath("tests/goldens/models/tiny-flash-F16.gguf");
    const TestModel model = OpenModel(options, group);
    ASSERT_NE(model.model, nullptr);
    const Collected got = RunTogether(*model.model, {{tokens, 0}, {followed, 40}}, 0);
    const auto end = got.logits[0].end();
    EXPECT_LE(RelativeError({end - static_cast<ptrdiff_t>(want.size()), end}, want), 2e-5);
    for (size_t i = 0; i < greedy.size(); ++i) {
      const auto row = got.logits[1].begin() + static_cast<ptrdiff_t>((11 + i) * 1000);
      EXPECT_EQ(std::max_element(row, row + 1000) - row, greedy[i]) << i;
    }
  });
}

// tiny-flash, of whose tensors `change` writes some otherwise (and returns true).
void WriteChanged(const testing::TemporaryDirectory& directory,
                  const std::function<bool(const std::string& name, const std::string& bytes,
                                           testing::SafetensorsWriter* writer)>& change) {
  const std::string source = SourcePath("tests/goldens/models/tiny-flash/");
  const auto index =
      nlohmann::json::parse(testing::ReadAll(source + "model.safetensors.index.json"));
  testing::SafetensorsWriter writer;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const Golden stored(source + file.get<std::string>());
    const std::vector<std::byte> bytes = stored.Bytes(name);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const std::string type = name.ends_with("correction_bias") ? "F32" : "BF16";
    if (!change(name, text, &writer)) writer.Add(name, type, stored.Shape(name), text);
  }
  directory.Write("model.safetensors", writer.File());
  directory.Write("config.json", testing::ReadAll(source + "config.json"));
}

constexpr size_t kHeads = 5, kKeys = 24, kValues = 32, kLatent = 32;

// kv_b_proj as mlx_lm saves it: keys transposed [H, L, n], values [H, v, L].
bool AsMlx(const std::string& name, const std::string& text, testing::SafetensorsWriter* writer) {
  const size_t at = name.find("kv_b_proj.weight");
  if (at == std::string::npos) return false;
  std::string keys, values;
  for (size_t head = 0; head < kHeads; ++head) {
    const size_t first = head * (kKeys + kValues) * kLatent;
    for (size_t j = 0; j < kLatent; ++j) {
      for (size_t i = 0; i < kKeys; ++i) keys += text.substr(2 * (first + i * kLatent + j), 2);
    }
    values += text.substr(2 * (first + kKeys * kLatent), 2 * kValues * kLatent);
  }
  const std::string prefix = name.substr(0, at);
  writer->Add(prefix + "embed_q.weight", "BF16", {kHeads, kLatent, kKeys}, keys);
  writer->Add(prefix + "unembed_out.weight", "BF16", {kHeads, kValues, kLatent}, values);
  return true;
}

// Every head four times. What they give is added with weights that are one together, powers of two:
// the same model but for the order of additions.
constexpr int kCopies = 4;
bool AsTwentyHeads(const std::string& name, const std::string& text,
                   testing::SafetensorsWriter* writer) {
  const bool queries = name.ends_with("q_b_proj.weight");
  if (queries || name.ends_with("kv_b_proj.weight")) {
    std::string all;
    for (int copy = 0; copy < kCopies; ++copy) all += text;
    const int64_t inputs = queries ? 24 : kLatent;
    writer->Add(name, "BF16", {static_cast<int64_t>(all.size()) / 2 / inputs, inputs}, all);
    return true;
  }
  if (!name.ends_with("o_proj.weight")) return false;
  const size_t row_bytes = kHeads * kValues * 2;
  std::string all;
  for (size_t row = 0; row < text.size(); row += row_bytes) {
    for (const int halvings : {1, 2, 3, 3}) {
      for (size_t i = row; i < row + row_bytes; i += 2) {
        uint16_t bits = 0;
        std::memcpy(&bits, text.data() + i, 2);
        const float value =
            std::bit_cast<float>(uint32_t{bits} << 16) / static_cast<float>(1 << halvings);
        bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
        all.append(reinterpret_cast<const char*>(&bits), 2);
      }
    }
  }
  writer->Add(name, "BF16",
              {static_cast<int64_t>(text.size() / row_bytes), kCopies * kHeads * kValues}, all);
  return true;
}

TEST(Flash, TwentyHeadsOnOneToFiveRanksAgreeWithTransformers) {
  const testing::TemporaryDirectory directory;
  WriteChanged(directory, AsTwentyHeads);
  nlohmann::json config = nlohmann::json::parse(testing::ReadAll(directory.File("config.json")));
  config["num_attention_heads"] = config["num_key_value_heads"] = kCopies * kHeads;
  directory.Write("config.json", config.dump());
  const Golden golden = Flash();
  for (const std::vector<double>& shares : std::vector<std::vector<double>>{
           {1}, {1, 1}, {1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1, 1}, {7, 3}, {1, 0, 2.5, 4, 0.3}}) {
    std::vector<Collected> results(shares.size());
    RunRanks(static_cast<int>(shares.size()), "tcp", [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = directory.path();
      options.shares = shares;
      const TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      results[static_cast<size_t>(group.rank())] =
          RunTogether(*model.model, {{golden.Ids("main.input_ids"), 0}}, 0);
    });
    EXPECT_LE(RelativeError(LastLogits(results, 0, 40), golden.Floats("main.logits")), 1e-5)
        << ::testing::PrintToString(shares);
  }
}

TEST(Flash, MlxNamesForTheHeadsGiveTheSameModel) {
  const testing::TemporaryDirectory directory;
  WriteChanged(directory, AsMlx);
  const Golden golden = Flash();
  std::vector<Collected> results(2);
  RunRanks(2, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = directory.path();
    const TestModel model = OpenModel(options, group);
    ASSERT_NE(model.model, nullptr);
    results[static_cast<size_t>(group.rank())] =
        RunTogether(*model.model, {{golden.Ids("main.input_ids"), 0}}, 0);
  });
  EXPECT_LE(RelativeError(LastLogits(results, 0, 40), golden.Floats("main.logits")), 1e-5);
}

TEST(Flash, AllocatesWhatThePlanSays) {
  for (const int ranks : {1, 5}) {
    RunRanks(ranks, "tcp", [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath("tests/goldens/models/tiny-flash");
      options.shares = ranks == 5 ? std::vector<double>{0.1, 1, 3, 0.2, 1} : std::vector<double>{};
      const TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      // 4 layers of 40 float32 a token, whole on every rank.
      EXPECT_EQ(model.model->memory().kv_bytes,
                static_cast<uint64_t>(4 * 40 * 4 * kBlockTokens * options.limits.kv_blocks));
      // 8-bit: a latent of 32 with one scale, a key of 8 with one.
      options.limits.cache_type = kernels::CacheType::kQ8;
      const TestModel small = OpenModel(options, group);
      ASSERT_NE(small.model, nullptr);
      EXPECT_EQ(small.model->memory().kv_bytes,
                static_cast<uint64_t>(4 * (36 + 12) * kBlockTokens * options.limits.kv_blocks));
    });
  }
}

std::string ErrorOf(const std::string& directory) {
  std::string message;
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    ThreadPool pool(1);
    const auto backend = kernels::MakeBackend("cpu").value();
    LoadOptions options;
    options.directory = directory;
    options.shares = {1};
    options.limits = {.max_rows = 8, .max_outputs = 8, .max_model_len = 64, .kv_blocks = 8};
    const Status status = LoadModel(options, group, *backend, pool).status();
    EXPECT_FALSE(status.ok());
    message = MessageOf(status);
  });
  return message;
}

TEST(Flash, ConfigThatContradictsTheWeightsNamesTensorAndShapes) {
  testing::TemporaryDirectory directory;
  directory.CopyFrom(SourcePath("tests/goldens/models/tiny-flash"));
  const nlohmann::json good =
      nlohmann::json::parse(testing::ReadAll(directory.File("config.json")));
  const auto with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json config = good;
    config[key] = value;
    directory.Write("config.json", config.dump());
    return ErrorOf(directory.path());
  };
  EXPECT_THAT(with("q_lora_rank", 32), AllOf(HasSubstr("q_a_proj.weight"), HasSubstr("[32, 64]")));
  EXPECT_THAT(with("kv_lora_rank", 16),
              AllOf(HasSubstr("kv_a_proj_with_mqa.weight"), HasSubstr("[24, 64]")));
  EXPECT_THAT(with("v_head_dim", 16), HasSubstr("kv_b_proj.weight"));
  EXPECT_THAT(with("num_attention_heads", 4), HasSubstr("q_b_proj.weight"));
  EXPECT_THAT(with("model_type", "glm4_moe"), HasSubstr("q_proj.weight"));
}

}  // namespace
}  // namespace lockstep
