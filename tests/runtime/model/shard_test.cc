// Files of ranks: a model that is loaded from them computes the same bits as from its checkpoint,
// an interrupted start is taken up again, and damage has a name.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/shard_file.h"
#include "runtime/weights/slice_loader.h"
#include "runtime/weights/stored_rows.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"
#include "tests/support/sharding.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using testing::OpenModel;
using testing::ReadAll;
using testing::RunRanks;
using testing::ShardModel;
using testing::SourcePath;
using testing::TemporaryDirectory;

std::string ModelPath(const std::string& name) {
  return SourcePath("tests/goldens/models/" + name);
}

// Logits of every rank's vocabulary, side by side, and the hidden states.
std::vector<testing::Collected> Compute(const std::string& model,
                                        const std::vector<double>& shares) {
  std::vector<testing::Collected> collected(shares.size());
  RunRanks(static_cast<int>(shares.size()), "tcp", [&](Membership&, Group& group) {
    testing::TestModelOptions options;
    options.directory = model;
    options.shares = shares;
    testing::TestModel opened = OpenModel(options, group);
    ASSERT_NE(opened.model, nullptr);
    std::vector<int32_t> tokens(40);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7 % 200);
    collected[static_cast<size_t>(group.rank())] =
        testing::RunTogether(*opened.model, {{tokens}}, 0);
  });
  return collected;
}

// The error with which rank 0 of these ranks opens or loads the files.
std::string LoadError(const std::string& directory, const std::vector<double>& shares) {
  std::string message;
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    const auto checkpoint = Checkpoint::Open(directory, {0, shares});
    if (!checkpoint.ok()) {
      message = MessageOf(checkpoint.status());
      return;
    }
    SliceLoader loader(**checkpoint, group, {1}, {});
    for (const auto& [name, info] : (*checkpoint)->tensors()) {
      if (info.slice->what.kind != SliceKind::kRows || info.slice->what.range.empty()) continue;
      const Range rows = info.slice->what.range;
      HostMatrix to =
          HostMatrix::Allocate(info.format, 1, rows.size(), info.shape[1], "test").value();
      const Status status = loader.ReadRows(name, info.shape[0], rows, &to, 0, 0);
      if (!status.ok()) message = MessageOf(status);
    }
  });
  return message;
}

struct Case {
  std::string model;
  std::vector<double> shares;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << ", " << c.shares.size() << " ranks";
}

class ShardedModel : public ::testing::TestWithParam<Case> {};

TEST_P(ShardedModel, ComputesTheBitsOfItsCheckpoint) {
  TemporaryDirectory directory;
  const auto& [model, shares] = GetParam();
  const StatusOr<ShardResult> made = ShardModel(ModelPath(model), directory.path(), shares);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto want = Compute(ModelPath(model), shares), got = Compute(directory.path(), shares);
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    EXPECT_EQ(got[rank].hidden, want[rank].hidden);
    EXPECT_EQ(got[rank].logits, want[rank].logits);
    EXPECT_EQ(got[rank].digests, want[rank].digests);
    ASSERT_FALSE(got[rank].hidden[0].empty());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Files, ShardedModel,
    ::testing::Values(Case{"tiny-a", {1, 1}}, Case{"tiny-a", {3, 1, 2}}, Case{"tiny-b", {1, 0, 2}},
                      Case{"tiny-k-Q4_K_M.gguf", {1, 1}}, Case{"tiny-k-Q4_K_M.gguf", {3, 1, 2}},
                      Case{"tiny-a-fp8", {1, 1}}, Case{"tiny-a-fp8", {3, 1, 2}},
                      Case{"tiny-k-mlx4", {2, 1}}, Case{"tiny-flash", {1, 1}},
                      Case{"tiny-flash", {3, 1, 2}}, Case{"tiny-flash-F16.gguf", {3, 1, 2}}));

// What the ranks hold of every column-cut matrix, decoded and side by side.
std::map<std::string, std::vector<float>> Columns(const std::string& directory,
                                                  const std::vector<double>& shares) {
  std::map<std::string, std::vector<float>> all;
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    const auto checkpoint = Checkpoint::Open(directory, {static_cast<int>(rank), shares});
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    StoredRowReader reader({});
    for (const auto& [name, info] : (*checkpoint)->tensors()) {
      const TensorSlice& slice = info.slice->what;
      if (slice.kind != SliceKind::kColumns || slice.range.empty()) continue;
      std::vector<float>& values = all[name];
      values.resize(static_cast<size_t>(info.shape[0] * info.shape[1]));
      std::vector<std::byte> bytes(info.data.bytes);
      const Status status = reader.ReadSlice(info, name, bytes.data());
      EXPECT_TRUE(status.ok()) << status;
      const uint64_t row_bytes = info.data.bytes / static_cast<uint64_t>(info.shape[0]);
      for (int64_t row = 0; row < info.shape[0]; ++row) {
        DecodeRow(info.format, bytes.data() + static_cast<uint64_t>(row) * row_bytes,
                  slice.range.size(), PhaseAt(info.format, 0, slice.range.begin), 0,
                  slice.range.size(), values.data() + row * info.shape[1] + slice.range.begin);
      }
    }
  }
  return all;
}

TEST(Quantizing, SeesWholeRowsSoThatTheWeightsDoNotDependOnTheRanks) {
  TemporaryDirectory one, three;
  ASSERT_TRUE(ShardModel(ModelPath("tiny-k"), one.path(), {1}, "q4_k").ok());
  ASSERT_TRUE(ShardModel(ModelPath("tiny-k"), three.path(), {3, 1, 2}, "q4_k").ok());
  const auto whole = Columns(one.path(), {1});
  EXPECT_FALSE(whole.empty());
  EXPECT_EQ(whole, Columns(three.path(), {3, 1, 2}));
}

TEST(Quantizing, ChangesWhatIsNamedAndNothingElse) {
  TemporaryDirectory directory;
  ASSERT_TRUE(
      ShardModel(ModelPath("tiny-k"), directory.path(), {1}, "experts=q4_k,q8_0,head=q6_k").ok());
  const auto checkpoint = Checkpoint::Open(directory.path(), {0, {1}}).value();
  const auto format = [&](const std::string& name) {
    return checkpoint->Find(name)->format.Name();
  };
  EXPECT_EQ(format("lm_head.weight"), "Q6_K");
  EXPECT_EQ(format("model.layers.1.mlp.experts.0.down_proj.weight"), "Q4_K");
  EXPECT_EQ(format("model.layers.1.mlp.shared_experts.up_proj.weight"), "Q8_0");
  EXPECT_EQ(format("model.layers.0.mlp.gate_proj.weight"), "Q8_0");
  EXPECT_EQ(format("model.layers.0.self_attn.q_proj.weight"), "Q8_0");
  const auto source = Checkpoint::Open(ModelPath("tiny-k")).value();
  for (const std::string name :
       {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight", "model.norm.weight"}) {
    EXPECT_EQ(format(name), source->Find(name)->format.Name()) << name;
  }
}

TEST(Quantizing, Q8KeepsTheModelsWords) {
  TemporaryDirectory directory;
  ASSERT_TRUE(ShardModel(ModelPath("tiny-k"), directory.path(), {2, 1}, "q8_0").ok());
  const auto want = Compute(ModelPath("tiny-k"), {2, 1});
  const auto got = Compute(directory.path(), {2, 1});
  double difference = 0, size = 0;
  ASSERT_EQ(got[0].hidden[0].size(), want[0].hidden[0].size());
  for (size_t i = 0; i < want[0].hidden[0].size(); ++i) {
    difference += std::pow(got[0].hidden[0][i] - want[0].hidden[0][i], 2);
    size += std::pow(want[0].hidden[0][i], 2);
  }
  EXPECT_GT(difference, 0);
  EXPECT_LT(std::sqrt(difference / size), 0.05);
}

TEST(Quantizing, TheDraftLayersMatricesChangeIfTheyAreNamed) {
  const auto source = Checkpoint::Open(ModelPath("tiny-b")).value();
  const ModelConfig config = ConfigOf(*source).value();
  const std::string layer = "model.layers." + std::to_string(config.num_hidden_layers) + ".";
  const auto unnamed = QuantizedFormats(config, *source, "q8_0").value();
  for (const auto& [name, format] : unnamed) EXPECT_FALSE(name.starts_with(layer)) << name;
  const auto formats = QuantizedFormats(config, *source, "draft=q8_0").value();
  EXPECT_EQ(formats.size(), 4u + 3 * 12 + 3 + 1);  // attention, experts, shared ones, eh_proj
  for (const auto& [name, format] : formats) {
    EXPECT_TRUE(name.starts_with(layer)) << name;
    EXPECT_THAT(name, ::testing::Not(HasSubstr(".mlp.gate.")));
  }
  EXPECT_TRUE(formats.contains(layer + "eh_proj.weight"));
}

TEST(Quantizing, BadChoicesAreUsageErrors) {
  const auto source = Checkpoint::Open(ModelPath("tiny-a")).value();
  const ModelConfig config = ConfigOf(*source).value();
  for (const std::string text :
       {"q9", "router=q8_0", "experts=", "q8_0,q4_0", "head=q8_0,head=fp8", ",", "=q8_0"}) {
    const auto formats = QuantizedFormats(config, *source, text);
    ASSERT_FALSE(formats.ok()) << text;
    EXPECT_EQ(KindOf(formats.status()), ErrorKind::kUsage);
    EXPECT_THAT(MessageOf(formats.status()), HasSubstr("--quantize"));
  }
}

std::vector<std::string> Files(const std::string& directory, int ranks) {
  std::vector<std::string> contents;
  for (int rank = 0; rank < ranks; ++rank)
    contents.push_back(ReadAll(directory + "/" + ShardName(rank, ranks)));
  return contents;
}

TEST(Sharding, DoesNotDependOnChunksAndThreads) {
  for (const std::string model : {"tiny-k", "tiny-flash", "tiny-a-fp8"}) {
    TemporaryDirectory whole, pieces;
    ASSERT_TRUE(ShardModel(ModelPath(model), whole.path(), {3, 1, 2}, "q6_k").ok());
    ShardOptions options;
    options.chunk_bytes = 3000;
    options.threads = 3;
    ASSERT_TRUE(ShardModel(ModelPath(model), pieces.path(), {3, 1, 2}, "q6_k", options).ok());
    EXPECT_TRUE(Files(pieces.path(), 3) == Files(whole.path(), 3)) << model;
  }
}

TEST(Resuming, AfterAKillTheFilesAreTheSame) {
  TemporaryDirectory whole, killed;
  const std::string model = ModelPath("tiny-k");
  ASSERT_TRUE(ShardModel(model, whole.path(), {2, 1}, "q4_k").ok());
  int64_t kept = 0;
  for (const int stop_at : {1, 30, 30}) {
    const pid_t child = fork();
    if (child == 0) {
      int calls = 0;
      ShardOptions options;
      options.journal_bytes = 0;
      options.progress = [&](uint64_t, uint64_t) {
        if (++calls == stop_at) (void)kill(getpid(), SIGKILL);
      };
      (void)ShardModel(model, killed.path(), {2, 1}, "q4_k", options);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << stop_at;
    ASSERT_FALSE(FileExists(killed.File(ShardName(0, 2))));
  }
  // A line that was cut short is not believed.
  std::ofstream(killed.File("shard-rank-1.journal"), std::ios::app) << "3 0123";
  ShardOptions four;
  four.threads = 4;
  const StatusOr<ShardResult> result = ShardModel(model, killed.path(), {2, 1}, "q4_k", four);
  ASSERT_TRUE(result.ok()) << result.status();
  kept = result->tensors_kept;
  EXPECT_GT(kept, 10);
  EXPECT_LT(kept, result->tensors);
  EXPECT_EQ(Files(killed.path(), 2), Files(whole.path(), 2));
  EXPECT_FALSE(FileExists(killed.File("shard-rank-1.journal")));
  // A start on top of whole files has nothing to do.
  const StatusOr<ShardResult> again = ShardModel(model, killed.path(), {2, 1}, "q4_k");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->tensors_kept, again->tensors);
  // Other settings are refused.
  const StatusOr<ShardResult> other = ShardModel(model, killed.path(), {1, 1}, "q4_k");
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(MessageOf(other.status()), HasSubstr("other settings"));
}

TEST(Resuming, AJournalOfOtherSettingsIsNotBelieved) {
  TemporaryDirectory whole, other;
  const std::string model = ModelPath("tiny-a");
  ASSERT_TRUE(ShardModel(model, whole.path(), {1, 1}).ok());
  int calls = 0;
  ShardOptions options;
  options.journal_bytes = 0;
  options.stop = [&] { return ++calls > 40; };
  const StatusOr<ShardResult> stopped = ShardModel(model, other.path(), {1, 1}, "fp8", options);
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(KindOf(stopped.status()), ErrorKind::kInterrupted);
  const StatusOr<ShardResult> result = ShardModel(model, other.path(), {1, 1});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->tensors_kept, 0);
  EXPECT_EQ(Files(other.path(), 2), Files(whole.path(), 2));
}

TEST(Resuming, BetweenTheNamesItGoesOn) {
  TemporaryDirectory directory;
  const std::string model = ModelPath("tiny-a");
  ASSERT_TRUE(ShardModel(model, directory.path(), {1, 1}).ok());
  const auto want = Files(directory.path(), 2);
  // As after a kill that came between two names, with the journal lost besides.
  std::filesystem::rename(directory.File(ShardName(1, 2)),
                          directory.File(ShardName(1, 2)) + ".part");
  const StatusOr<ShardResult> result = ShardModel(model, directory.path(), {1, 1});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Files(directory.path(), 2), want);
}

// One journal would not know of what the other start threw away.
TEST(Resuming, AllRanksAndOneRankMayTakeTurns) {
  TemporaryDirectory whole;
  const std::string model = ModelPath("tiny-k");
  ASSERT_TRUE(ShardModel(model, whole.path(), {2, 1}, "q4_k").ok());
  for (const std::vector<int>& turns :
       {std::vector<int>{-1, 0, -1}, {0, -1, 0}, {-1, 1, 0, -1}, {1, -1, -1}}) {
    TemporaryDirectory directory;
    for (size_t turn = 0; turn < turns.size(); ++turn) {
      int calls = 0;
      ShardOptions options;
      options.only_rank = turns[turn];
      options.journal_bytes = 0;
      // The later start ends before it is where the one before it was.
      const int most = turn == 0 ? 60 : 20;
      if (turn + 1 < turns.size()) options.stop = [&] { return ++calls > most; };
      const StatusOr<ShardResult> result =
          ShardModel(model, directory.path(), {2, 1}, "q4_k", options);
      ASSERT_EQ(result.ok(), turn + 1 == turns.size()) << result.status();
    }
    for (const int rank : {0, 1}) {
      if (turns.back() >= 0 && rank != turns.back()) continue;
      EXPECT_TRUE(ReadAll(directory.File(ShardName(rank, 2))) ==
                  ReadAll(whole.File(ShardName(rank, 2))))
          << "rank " << rank << " after " << ::testing::PrintToString(turns);
    }
  }
}

TEST(Resuming, AllRanksAndOneRankExcludeEachOther) {
  const std::string model = ModelPath("tiny-a");
  for (const int first : {-1, 0}) {
    TemporaryDirectory directory;
    int asked = 0;
    Status other = OkStatus();
    ShardOptions options;
    options.only_rank = first;
    options.progress = [&](uint64_t, uint64_t) {
      if (asked++ > 0) return;
      ShardOptions beside;
      beside.only_rank = first < 0 ? 0 : -1;
      other = ShardModel(model, directory.path(), {1, 1}, "", beside).status();
    };
    const StatusOr<ShardResult> result = ShardModel(model, directory.path(), {1, 1}, "", options);
    EXPECT_TRUE(result.ok()) << result.status();
    ASSERT_FALSE(other.ok()) << "first " << first;
    EXPECT_THAT(MessageOf(other), HasSubstr("another lockstep shard"));
  }
}

// As launcher/files/shard_source.cc holds the file that it is copying.
TEST(Resuming, ACopyOfAReadyFileExcludesAShard) {
  TemporaryDirectory directory;
  const std::string part = directory.File(ShardName(1, 2) + ".part");
  directory.Write(ShardName(1, 2) + ".part", "half a file");
  const int copy = open(part.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(copy, LOCK_EX), 0);
  const Status made = ShardModel(ModelPath("tiny-a"), directory.path(), {1, 1}).status();
  EXPECT_THAT(MessageOf(made), HasSubstr("another lockstep shard"));
  EXPECT_EQ(ReadAll(part), "half a file");
  close(copy);
  EXPECT_TRUE(ShardModel(ModelPath("tiny-a"), directory.path(), {1, 1}).ok());
}

TEST(Damage, HasANameAndARemedy) {
  TemporaryDirectory directory;
  ASSERT_TRUE(ShardModel(ModelPath("tiny-a"), directory.path(), {3, 2}).ok());
  EXPECT_EQ(LoadError(directory.path(), {3, 2}), "");
  EXPECT_EQ(LoadError(directory.path(), {6, 4}), "");
  EXPECT_THAT(LoadError(directory.path(), {1, 1}), HasSubstr("--shares 3,2"));
  EXPECT_THAT(LoadError(directory.path(), {1, 1, 1}), HasSubstr("files for 2 ranks"));
  EXPECT_THAT(LoadError(directory.path(), {}), HasSubstr("slices of single ranks"));
  const std::string path = directory.File(ShardName(0, 2));
  const std::string good = ReadAll(path);
  const StatusOr<ShardHeader> header = ReadShardHeader(path);
  ASSERT_TRUE(header.ok());
  for (const ShardTensor& tensor : header->tensors) {
    if (tensor.slice.kind != SliceKind::kRows || tensor.bytes == 0) continue;
    std::string bad = good;
    bad[tensor.offset + tensor.bytes / 2] ^= 4;
    directory.Write(ShardName(0, 2), bad);
    const std::string message = LoadError(directory.path(), {3, 2});
    EXPECT_THAT(message, HasSubstr("tensor " + tensor.name + " does not match its checksum"));
    EXPECT_THAT(message, HasSubstr(path));
  }
  directory.Write(ShardName(0, 2), good.substr(0, good.size() - 100));
  EXPECT_THAT(LoadError(directory.path(), {3, 2}), HasSubstr("it was cut"));
  directory.Write(ShardName(0, 2), ReadAll(directory.File(ShardName(1, 2))));
  EXPECT_THAT(LoadError(directory.path(), {3, 2}), HasSubstr("another file's name"));
}

TEST(Damage, AFullDiskIsReportedAndTheNextStartGoesOn) {
  TemporaryDirectory directory;
  const std::string model = ModelPath("tiny-a");
  const pid_t child = fork();
  if (child == 0) {
    (void)signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{20'000, 20'000};
    (void)setrlimit(RLIMIT_FSIZE, &limit);
    const StatusOr<ShardResult> result = ShardModel(model, directory.path(), {1, 1});
    const bool named = !result.ok() && KindOf(result.status()) == ErrorKind::kUsage &&
                       MessageOf(result.status()).find("make room") != std::string::npos;
    _exit(named ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(ShardModel(model, directory.path(), {1, 1}).ok());
  EXPECT_EQ(LoadError(directory.path(), {1, 1}), "");
}

}  // namespace
}  // namespace lockstep
