// What is loaded for the draft layer (multi-token prediction), from whole, odd and broken files.
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/drafts.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/sequences.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Draft;
using testing::Golden;
using ::testing::HasSubstr;
using testing::Kept;
using testing::OpenModel;
using testing::ReadAll;
using testing::RelativeError;
using testing::RowsAt;
using testing::RunRanks;
using testing::SourcePath;
using testing::Step;
using testing::TemporaryDirectory;
using testing::TestModel;
using testing::TestModelOptions;

constexpr int64_t kHidden = 64;
constexpr int64_t kVocab = 1000;

Golden TinyB() { return Golden(SourcePath("tests/goldens/goldens/tiny-b.safetensors")); }

// A checkpoint whose tensors can be changed, in one file.
class Editable {
 public:
  explicit Editable(const std::string& name) {
    const std::string from = SourcePath("tests/goldens/models/" + name);
    config = nlohmann::json::parse(ReadAll(from + "/config.json"));
    for (const auto& entry : std::filesystem::directory_iterator(from)) {
      if (entry.path().extension() != ".safetensors") continue;
      const std::string file = ReadAll(entry.path());
      uint64_t size = 0;
      std::memcpy(&size, file.data(), 8);
      const nlohmann::json header = nlohmann::json::parse(file.substr(8, size));
      for (const auto& [key, value] : header.items()) {
        if (key == "__metadata__") continue;
        const auto offsets = value["data_offsets"].get<std::vector<uint64_t>>();
        tensors[key] = {value["dtype"], value["shape"],
                        file.substr(8 + size + offsets[0], offsets[1] - offsets[0])};
      }
    }
  }
  // The path of the files as they are now.
  const std::string& Write() const {
    testing::SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors)
      writer.Add(name, tensor.type, tensor.shape, tensor.bytes);
    directory_.Write("model.safetensors", writer.File());
    directory_.Write("config.json", config.dump());
    return directory_.path();
  }

  // Every tensor of one layer under another layer's names as well.
  void CopyLayer(int from, int to) {
    const std::string source = "model.layers." + std::to_string(from) + ".";
    const std::string target = "model.layers." + std::to_string(to) + ".";
    std::map<std::string, Tensor> copies;
    for (const auto& [name, tensor] : tensors) {
      if (name.find(source) == 0) copies[target + name.substr(source.size())] = tensor;
    }
    tensors.merge(copies);
  }
  void EraseLayer(int layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    std::erase_if(tensors, [&](const auto& tensor) { return tensor.first.find(prefix) == 0; });
  }

  struct Tensor {
    std::string type;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  nlohmann::json config;
  std::map<std::string, Tensor> tensors;

 private:
  TemporaryDirectory directory_;
};

constexpr const char* kPrefix = "model.layers.6.";

struct Loaded {
  Status status;
  MemoryPlan memory;
  uint64_t bytes_per_token = 0;
  Kept draft;
};

// Loads on one rank, and drafts the golden's rows if there is a layer for it.
Loaded Load(const std::string& directory, bool draft_layer, int64_t hidden = kHidden) {
  Loaded result;
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    ThreadPool pool(1);
    const auto backend = kernels::MakeBackend("cpu").value();
    LoadOptions options;
    options.directory = directory;
    options.shares = {1};
    options.limits = {.max_rows = 40, .max_outputs = 40, .max_model_len = 64, .kv_blocks = 12};
    options.draft_layer = draft_layer;
    auto model = LoadModel(options, group, *backend, pool);
    result.status = model.status();
    if (!model.ok()) return;
    result.memory = (*model)->memory();
    result.bytes_per_token = (*model)->bytes_per_token();
    EXPECT_EQ((*model)->has_draft_layer(), draft_layer);
    const Golden golden = TinyB();
    auto states = golden.Floats("main.hidden.final_norm");
    states.resize(static_cast<size_t>(40 * hidden), 0.25f);
    const auto output = (*model)->Draft(RowsAt(golden.Ids("mtp.next_ids"), 0), states);
    EXPECT_EQ(output.ok(), draft_layer);
    if (output.ok()) result.draft = Kept(*output);
  });
  return result;
}

TEST(DraftLayer, IsLoadedOnlyIfAsked) {
  const std::string directory = SourcePath("tests/goldens/models/tiny-b");
  const Loaded without = Load(directory, false);
  const Loaded with = Load(directory, true);
  ASSERT_TRUE(without.status.ok() && with.status.ok());
  // 2 x 4 heads of 16 float32 a position, in 12 blocks of 16 positions.
  EXPECT_EQ(with.memory.kv_bytes - without.memory.kv_bytes, uint64_t{2 * 4 * 16 * 4 * 12 * 16});
  EXPECT_GE(with.memory.scratch_bytes - without.memory.scratch_bytes, uint64_t{3 * 40 * 64 * 4});
  EXPECT_EQ(with.bytes_per_token, without.bytes_per_token);
  // All matrices of the layer in BF16, without the copies of embedding and head.
  int64_t expected = 0, in_panels = 0;
  for (const auto& [name, tensor] : Editable("tiny-b").tensors) {
    if (name.find(kPrefix) != 0 || tensor.shape[0] == kVocab) continue;
    if (tensor.shape.size() == 1) in_panels += tensor.shape[0] * 4;  // vectors are float32
    if (tensor.shape.size() != 2) continue;
    expected += static_cast<int64_t>(tensor.bytes.size());
    in_panels += (tensor.shape[0] + 15) / 16 * 16 * tensor.shape[1] * 2;
  }
  const auto added = static_cast<int64_t>(with.memory.weight_bytes - without.memory.weight_bytes);
  EXPECT_GE(added, expected);
  EXPECT_LE(added, in_panels + 10 * 64);  // behind each matrix
}

TEST(DraftLayer, CopiesThatAreMissingChangeNothing) {
  Editable files("tiny-b");
  const Loaded whole = Load(files.Write(), true);
  files.tensors.erase(std::string(kPrefix) + "embed_tokens.weight");
  files.tensors.erase(std::string(kPrefix) + "shared_head.head.weight");
  const Loaded bare = Load(files.Write(), true);
  ASSERT_TRUE(bare.status.ok()) << bare.status;
  EXPECT_EQ(bare.draft, whole.draft);
  EXPECT_EQ(bare.memory.weight_bytes, whole.memory.weight_bytes);
}

TEST(DraftLayer, CopiesThatDifferAreUsed) {
  Editable files("tiny-b");
  const Loaded whole = Load(files.Write(), true);
  Editable::Tensor& embedding = files.tensors[std::string(kPrefix) + "embed_tokens.weight"];
  const std::string original = embedding.bytes;
  embedding.bytes.assign(original.size(), '\0');
  const Loaded other_embedding = Load(files.Write(), true);
  EXPECT_NE(other_embedding.draft, whole.draft);
  EXPECT_EQ(other_embedding.memory.weight_bytes - whole.memory.weight_bytes, 1000u * 64 * 2 + 64);

  embedding.bytes = original;
  std::string& head = files.tensors[std::string(kPrefix) + "shared_head.head.weight"].bytes;
  head.replace(head.size() - 128, 128, 128, '\0');  // its last row alone
  const Loaded other_head = Load(files.Write(), true);
  ASSERT_EQ(other_head.draft.logits.size(), whole.draft.logits.size());
  for (size_t i = 0; i < whole.draft.logits.size(); ++i) {
    const float want = i % kVocab == kVocab - 1 ? 0 : whole.draft.logits[i];
    ASSERT_EQ(other_head.draft.logits[i], want) << i;
  }
}

TEST(DraftLayer, MissingTensorsAreNamed) {
  for (const char* name :
       {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight",
        "input_layernorm.weight", "self_attn.k_proj.bias", "mlp.experts.11.down_proj.weight"}) {
    Editable files("tiny-b");
    files.tensors.erase(std::string(kPrefix) + name);
    const Loaded loaded = Load(files.Write(), true);
    EXPECT_EQ(ExitCode(loaded.status), 3) << name;
    EXPECT_THAT(MessageOf(loaded.status),
                AllOf(HasSubstr(kPrefix), HasSubstr(name), HasSubstr("is missing")));
  }
}

TEST(DraftLayer, AbsentLayersAreSaidToBeSo) {
  Editable files("tiny-b");
  files.EraseLayer(6);
  EXPECT_THAT(MessageOf(Load(files.Write(), true).status), HasSubstr("mtp.safetensors"));
  EXPECT_TRUE(Load(files.Write(), false).status.ok());
  EXPECT_THAT(MessageOf(Load(SourcePath("tests/goldens/models/tiny-a"), true).status),
              HasSubstr("num_nextn_predict_layers"));
}

TEST(DraftLayer, MisshapenTensorsAreNamed) {
  Editable files("tiny-b");
  Editable::Tensor& join = files.tensors[std::string(kPrefix) + "eh_proj.weight"];
  join.shape = {128, 64};
  EXPECT_THAT(MessageOf(Load(files.Write(), true).status),
              AllOf(HasSubstr("eh_proj.weight"), HasSubstr("[128, 64]"), HasSubstr("[64, 128]")));
  join.shape = {64, 128};
  files.tensors[std::string(kPrefix) + "embed_tokens.weight"].shape = {500, 128};
  EXPECT_THAT(MessageOf(Load(files.Write(), true).status), HasSubstr("embed_tokens.weight"));
}

TEST(DraftLayer, TheShippedModelHasOne) {
  const Loaded loaded = Load(SourcePath("models/tiny"), true, 128);
  ASSERT_TRUE(loaded.status.ok()) << loaded.status;
  EXPECT_EQ(loaded.draft.logits.size(), 40u * 2048);
}

// GLM-4.7-Flash's attention in the draft layer. A model of one layer, whose draft layer is the same
// layer once more and joins to the embedding alone: both compute the same from the same tokens, if
// the embedding has the norm 1 that the draft layer gives it.
TEST(DraftLayer, OfLatentAttentionComputesWhatTheSameMainLayerDoes) {
  Editable files("tiny-flash");
  for (const int layer : {0, 1, 2}) files.EraseLayer(layer);
  files.CopyLayer(3, 0);
  files.CopyLayer(3, 1);
  files.EraseLayer(3);
  files.config["num_hidden_layers"] = 1;
  files.config["first_k_dense_replace"] = 0;
  files.config.erase("mlp_layer_types");
  files.config["num_nextn_predict_layers"] = 1;
  std::string& embedding = files.tensors["model.embed_tokens.weight"].bytes;
  for (size_t i = 0; i < embedding.size(); i += 2) {  // bfloat16: -1 or 1
    embedding[i] = '\x80';
    embedding[i + 1] = embedding[i + 1] < 0 ? '\xbf' : '\x3f';
  }
  std::vector<float> join(kHidden * 2 * kHidden, 0.0f);
  for (int64_t i = 0; i < kHidden; ++i) join[i * 2 * kHidden + i] = 1;
  const std::string ones = testing::BytesOf(std::vector<float>(kHidden, 1.0f));
  files.tensors["model.layers.1.eh_proj.weight"] = {
      "F32", {kHidden, 2 * kHidden}, testing::BytesOf(join)};
  files.tensors["model.layers.1.enorm.weight"] = {"F32", {kHidden}, ones};
  files.tensors["model.layers.1.hnorm.weight"] = {"F32", {kHidden}, ones};
  files.tensors["model.layers.1.shared_head.norm.weight"] = files.tensors["model.norm.weight"];
  const std::string directory = files.Write();
  const auto tokens = TinyB().Ids("main.input_ids");
  for (const int ranks : {1, 2, 5}) {
    RunRanks(ranks, "tcp", [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = directory;
      options.draft_layer = true;
      const TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      const Kept main = Step(*model.model, RowsAt(tokens, 0));
      const Kept draft = Draft(*model.model, RowsAt(tokens, 0), main.all_hidden);
      EXPECT_LE(RelativeError(draft.hidden, main.hidden), 2e-5) << ranks << " ranks";
      EXPECT_LE(RelativeError(draft.logits, main.logits), 2e-5) << ranks << " ranks";
    });
  }
}

TEST(DraftLayer, HiddenStatesOfAnotherNumberOfRowsAreRefused) {
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = SourcePath("tests/goldens/models/tiny-b");
    options.draft_layer = true;
    const TestModel model = OpenModel(options, group);
    ASSERT_NE(model.model, nullptr);
    const std::vector<float> states(2 * kHidden);
    EXPECT_THAT(MessageOf(model.model->Draft(RowsAt({1, 2, 3}, 0), states).status()),
                HasSubstr("3 rows"));
    EXPECT_FALSE(model.model->Draft(RowsAt({1, 1000}, 0), states).ok());
    EXPECT_TRUE(model.model->Draft(RowsAt({1, 2}, 0), states).ok());
  });
}

}  // namespace
}  // namespace lockstep
