// Checkpoints that contradict themselves are refused by name, on one rank and on several, and
// nobody hangs.
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/model/weights.h"
#include "runtime/weights/checkpoint.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ReadAll;
using testing::RunRanks;
using testing::SourcePath;
using testing::TemporaryDirectory;

constexpr ModelLimits kLimits{.max_rows = 8, .max_outputs = 8, .max_model_len = 64, .kv_blocks = 8};

Status Load(const std::string& directory, Group& group) {
  ThreadPool pool(1);
  const auto backend = kernels::MakeBackend("cpu").value();
  LoadOptions options;
  options.directory = directory;
  options.shares = ValidateShares({}, group.size()).value();
  options.limits = kLimits;
  return LoadModel(options, group, *backend, pool).status();
}

// The error on a single rank.
std::string ErrorOf(const std::string& directory) {
  std::string message;
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    const Status status = Load(directory, group);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(ExitCode(status), 3);
    message = MessageOf(status);
  });
  return message;
}

class BadCheckpoint : public ::testing::Test {
 protected:
  BadCheckpoint() { directory_.CopyFrom(SourcePath("tests/goldens/models/tiny-a")); }

  void EditConfig(const std::string& key, const nlohmann::json& value) {
    nlohmann::json config = nlohmann::json::parse(ReadAll(directory_.File("config.json")));
    config[key] = value;
    directory_.Write("config.json", config.dump());
  }
  // Overwrites `bytes` at the start of a tensor's data.
  void Poke(const std::string& tensor, const std::string& bytes) {
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      if (entry.path().extension() != ".safetensors") continue;
      std::string file = ReadAll(entry.path());
      uint64_t size = 0;
      std::memcpy(&size, file.data(), 8);
      const auto header = nlohmann::json::parse(file.substr(8, size));
      if (!header.contains(tensor)) continue;
      file.replace(8 + size + header[tensor]["data_offsets"][0].get<uint64_t>(), bytes.size(),
                   bytes);
      std::ofstream(entry.path(), std::ios::binary) << file;
      return;
    }
    FAIL() << tensor;
  }
  TemporaryDirectory directory_;
};

TEST_F(BadCheckpoint, ConfigThatContradictsTheWeightsNamesTensorAndShapes) {
  EditConfig("intermediate_size", 256);
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("gate_proj.weight"), HasSubstr("[128, 64]"), HasSubstr("[256, 64]")));
}

TEST_F(BadCheckpoint, MoreLayersThanConfigAnnouncesAreRefused) {
  EditConfig("num_hidden_layers", 3);
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("model.layers.3."), HasSubstr("announces 3 layers")));
}

TEST_F(BadCheckpoint, FewerLayersThanConfigAnnouncesNameTheMissingTensor) {
  EditConfig("num_hidden_layers", 5);
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("model.layers.4."), HasSubstr("is missing")));
}

TEST_F(BadCheckpoint, TensorsThatConfigLeavesNoPlaceForAreRefusedByName) {
  EditConfig("attention_bias", false);
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("_proj.bias"), HasSubstr("attention_bias")));
  EditConfig("attention_bias", true);
  EditConfig("use_qk_norm", false);
  EXPECT_THAT(ErrorOf(directory_.path()), HasSubstr("k_norm.weight"));
  EditConfig("use_qk_norm", true);
  EditConfig("tie_word_embeddings", true);
  EXPECT_THAT(ErrorOf(directory_.path()), HasSubstr("lm_head.weight"));
  EditConfig("tie_word_embeddings", false);
  EditConfig("num_hidden_layers", 3);
  EditConfig("num_nextn_predict_layers", 1);  // the last layer is no MTP layer
  EXPECT_THAT(ErrorOf(directory_.path()), HasSubstr("model.layers.3."));
}

TEST_F(BadCheckpoint, WeightsThatAreNotNumbersAreRefused) {
  Poke("model.layers.1.self_attn.q_proj.weight", std::string("\xc0\x7f", 2));  // a bfloat16 NaN
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("q_proj.weight"), HasSubstr("not finite")));
}

TEST_F(BadCheckpoint, ACutShardIsNamed) {
  const std::string shard = directory_.File("model-00002-of-00002.safetensors");
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 100);
  EXPECT_THAT(ErrorOf(directory_.path()),
              AllOf(HasSubstr("model-00002-of-00002"), HasSubstr("outside the file")));
}

TEST_F(BadCheckpoint, OneRanksBrokenFileEndsTheOthersWithItsReason) {
  Poke("model.layers.2.mlp.experts.5.down_proj.weight",
       std::string("\xc0\x7f", 2));  // read by rank 0 alone
  std::vector<std::string> messages(3);
  std::vector<ErrorKind> kinds(3);
  RunRanks(3, "tcp", [&](Membership& membership, Group& group) {
    const Status status = Load(directory_.path(), group);
    ASSERT_FALSE(status.ok());
    if (KindOf(status) == ErrorKind::kModel) membership.Abort(status);
    const Status health = membership.Health();
    messages[static_cast<size_t>(group.rank())] = MessageOf(status);
    kinds[static_cast<size_t>(group.rank())] = KindOf(status);
  });
  for (const std::string& message : messages) EXPECT_THAT(message, HasSubstr("not finite"));
  for (const ErrorKind kind : kinds) EXPECT_EQ(kind, ErrorKind::kModel);
}

// The test has no clock: if every name were sought among all of them, it would take minutes.
TEST(CheckUnused, ManyTensorsOfADraftLayerTakeNoTime) {
  constexpr int kTensors = 300'000;
  ModelConfig config;
  config.num_hidden_layers = 92;
  std::vector<std::string> unused;
  for (int i = 0; i < kTensors; ++i)
    unused.push_back(
        absl::StrFormat("model.layers.92.%014d", i));  // as long as the one that counts
  EXPECT_THAT(MessageOf(CheckUnused(config, unused)), HasSubstr(unused.front()));
  unused.emplace_back("model.layers.92.eh_proj.weight");
  const Status status = CheckUnused(config, unused);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(LoadModel, EveryRankReadsItsShareAndNothingElse) {
  const std::string directory = SourcePath("tests/goldens/models/tiny-k");
  uint64_t matrices = 0, replicated = 0;
  const auto checkpoint = Checkpoint::Open(directory).value();
  for (const auto& [name, info] : checkpoint->tensors()) {
    const bool everywhere =
        info.shape.size() == 1 || name.find("mlp.gate.weight") != std::string::npos ||
        name.find("k_proj") != std::string::npos || name.find("v_proj") != std::string::npos;
    (everywhere ? replicated : matrices) += info.stored_bytes();  // one KV head: both ranks hold it
  }
  std::vector<uint64_t> read(2);
  RunRanks(2, "tcp", [&](Membership&, Group& group) {
    testing::TestModelOptions options;
    options.directory = directory;
    const auto model = testing::OpenModel(options, group);
    read[static_cast<size_t>(group.rank())] = model.model->bytes_read();
  });
  for (const uint64_t bytes : read) {
    EXPECT_LE(static_cast<double>(bytes),
              1.05 * (static_cast<double>(matrices) / 2 + static_cast<double>(replicated)));
    EXPECT_GE(static_cast<double>(bytes), 0.95 * static_cast<double>(matrices) / 2);
  }
}

TEST(Step, RefusesBatchesThatPointOutsideInsteadOfReadingThere) {
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    testing::TestModelOptions options;
    options.directory = SourcePath("tests/goldens/models/tiny-a");
    options.limits = kLimits;
    const auto model = testing::OpenModel(options, group);
    const Batch good{.tokens = {1},
                     .positions = {0},
                     .sequences = {0},
                     .block_tables = {{0}},
                     .output_rows = {0}};
    EXPECT_TRUE(model.model->Step(good).ok());
    const auto refused = [&](auto&& edit) {
      Batch batch = good;
      edit(batch);
      EXPECT_FALSE(model.model->Step(batch).ok());
    };
    refused([](Batch& b) { b.tokens[0] = 1000; });
    refused([](Batch& b) { b.tokens[0] = -1; });
    refused([](Batch& b) { b.positions[0] = 16; });
    refused([](Batch& b) { b.positions[0] = -1; });
    refused([](Batch& b) { b.sequences[0] = 1; });
    refused([](Batch& b) { b.block_tables[0][0] = 8; });
    refused([](Batch& b) { b.output_rows[0] = 1; });
    refused([](Batch& b) { b.tokens.clear(); });
  });
}

}  // namespace
}  // namespace lockstep
