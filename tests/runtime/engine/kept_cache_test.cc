// The prefix cache over restarts of the whole engine: ranks are threads, the model reads its tokens
// back through the KV pages, so that a wrong page changes every answer behind it.
#include "runtime/engine/kept_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/runtime/engine/arrangement.h"
#include "tests/support/golden.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using testing::Answer;
using testing::Arrangement;
using testing::Ask;
using testing::GreedyReference;
using ::testing::HasSubstr;
using testing::ReadAll;
using testing::Submit;
using testing::TemporaryDirectory;
using testing::WithEngine;

constexpr char kKey[] = "model: fake\nkernels: none\n";

std::vector<int32_t> Prompt(int32_t length, int32_t salt = 0) {
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < length; ++i) prompt.push_back((i * 7 + salt) % 90);
  return prompt;
}

class Restarts : public ::testing::Test {
 protected:
  // Every rank has a directory of its own, as on its own machine.
  std::string Of(int rank) const { return directory_.File("node-" + std::to_string(rank)); }
  std::string FileOf(int rank) const { return Of(rank) + "/" + KeptFileName(rank, ranks_); }

  // Starts all ranks, answers the prompts one after the other, and ends in order. Returns how many
  // tokens of each prompt were there already; what is logged is in log_.
  std::vector<int64_t> Serve(const std::vector<std::vector<int32_t>>& prompts,
                             ErrorKind reason = ErrorKind::kInterrupted) {
    Arrangement setup{.ranks = ranks_};
    setup.limits.kv_blocks = kv_blocks_;
    setup.kept = [&](int rank) -> std::unique_ptr<KeptCache> {
      if (rank == without_) return nullptr;
      return std::make_unique<KeptCache>(rank == lost_ ? directory_.File("plain-file/x") : Of(rank),
                                         key_);
    };
    std::vector<int64_t> cached;
    ::testing::internal::CaptureStderr();
    const std::vector<Status> ends = WithEngine(setup, [&](Engine& engine) {
      for (const std::vector<int32_t>& prompt : prompts) {
        const Answer answer = Submit(engine, Ask(prompt, 20));
        EXPECT_EQ(answer.all.ids, GreedyReference(prompt, 20));
        cached.push_back(answer.summary.usage.cached_tokens);
      }
      const auto digests = engine.Stop(reason);
      EXPECT_TRUE(digests.ok()) << digests.status();
    });
    log_ = ::testing::internal::GetCapturedStderr();
    for (int rank = 1; rank < ranks_; ++rank)
      EXPECT_TRUE(ends[rank].ok() || KindOf(ends[rank]) == reason) << ends[rank];
    return cached;
  }
  std::string Files() const {
    std::string all;
    for (int rank = 0; rank < ranks_; ++rank) all += ReadAll(FileOf(rank));
    return all;
  }

  using Cached = std::vector<int64_t>;
  const TemporaryDirectory directory_;
  int ranks_ = 2;
  int64_t kv_blocks_ = 200;
  int without_ = -1;  // a rank that keeps nothing
  int lost_ = -1;     // a rank whose directory cannot be made
  std::string key_ = kKey;
  std::string log_;
};

TEST_F(Restarts, ALongSessionGoesOnWhereItWas) {
  for (const int ranks : {1, 2, 3}) {
    ranks_ = ranks;
    // The last token sampled has no KV, and the rest of a block none that could be shared.
    std::vector<int32_t> session = Prompt(100);
    int64_t there = 0;
    for (int day = 0; day < 3; ++day) {
      EXPECT_EQ(Serve({session, Prompt(40, 11 + day)})[0], there) << ranks << " ranks, " << day;
      const std::vector<int32_t> answer = GreedyReference(session, 20);
      session.insert(session.end(), answer.begin(), answer.end());
      there = (static_cast<int64_t>(session.size()) - 1) / 16 * 16;
      session.push_back(5);
    }
    EXPECT_THAT(log_, HasSubstr("prefix cache: restored"));
    EXPECT_THAT(log_, HasSubstr("prefix cache: kept"));
  }
}

TEST_F(Restarts, WhatWasUsedLastFitsASmallerPool) {
  EXPECT_EQ(Serve({Prompt(60, 1), Prompt(60, 2), Prompt(60, 3)}), (Cached{0, 0, 0}));
  kv_blocks_ = 7;  // four of the third prompt and its answer, and three of the second
  EXPECT_EQ(Serve({Prompt(60, 3), Prompt(60, 1)}), (Cached{48, 0}));
  // And nothing but what a larger one holds comes back from it.
  kv_blocks_ = 200;
  EXPECT_EQ(Serve({Prompt(60, 1), Prompt(60, 2)}), (Cached{48, 0}));
}

TEST_F(Restarts, OneRankWithoutItsFileStartsAllOfThemCold) {
  Serve({Prompt(100)});
  std::filesystem::remove(FileOf(1));
  EXPECT_EQ(Serve({Prompt(100)}), Cached{0});
  EXPECT_THAT(log_, HasSubstr("starting cold: rank 1 (node, pid 1) has no file"));
  EXPECT_EQ(Serve({Prompt(100)}), Cached{96}) << "and kept it again";
}

TEST_F(Restarts, ADamagedFileOfOneRankStartsAllOfThemCold) {
  Serve({Prompt(100)});
  std::string file = ReadAll(FileOf(1));
  file[file.size() - 20] ^= 1;  // in the last page
  std::ofstream(FileOf(1), std::ios::binary) << file;
  EXPECT_EQ(Serve({Prompt(100)}), Cached{0});
  EXPECT_THAT(log_, HasSubstr("starting cold: rank 1 (node, pid 1): "));
  EXPECT_THAT(log_, HasSubstr("damaged"));
}

TEST_F(Restarts, FilesOfTwoSavesAreNotMixed) {
  Serve({Prompt(100)});
  const std::string old = ReadAll(FileOf(1));
  std::filesystem::remove(FileOf(0));
  Serve({Prompt(100)});  // the same blocks, computed again
  std::ofstream(FileOf(1), std::ios::binary) << old;
  EXPECT_EQ(Serve({Prompt(100)}), Cached{0});
  EXPECT_THAT(log_, HasSubstr("rank 1 (node, pid 1) has the file of another save than rank 0"));
}

TEST_F(Restarts, OtherSettingsStartColdAndAreNamed) {
  Serve({Prompt(100)});
  key_ = "model: fake\nkernels: others\nmore: 1\n";
  EXPECT_EQ(Serve({Prompt(100)}), Cached{0});
  EXPECT_THAT(log_, HasSubstr("other settings: 'kernels: none' there, 'kernels: others' here"));
}

TEST_F(Restarts, ADiskThatTakesNothingLeavesTheSaveBefore) {
  Serve({Prompt(100)});
  const std::string before = Files();
  directory_.Write("plain-file", "");
  lost_ = 1;
  EXPECT_EQ(Serve({Prompt(50, 8)}), Cached{0});
  EXPECT_THAT(log_, HasSubstr("prefix cache: not kept: rank 1 (node, pid 1): "));
  EXPECT_EQ(Files(), before) << "not even on the rank whose disk is fine";
  lost_ = -1;
  EXPECT_EQ(Serve({Prompt(100)}), Cached{96});
}

TEST_F(Restarts, AFileThatCannotTakeItsPlaceIsNotCalledKept) {
  // Nothing takes the place of a directory that is not empty.
  std::filesystem::create_directories(FileOf(1) + "/x");
  ASSERT_EQ(chmod(Of(1).c_str(), 0700), 0);
  Serve({Prompt(100)});
  EXPECT_THAT(log_, HasSubstr("prefix cache: not kept: rank 1 (node, pid 1): "));
  EXPECT_THAT(log_, HasSubstr("other ranks have the new file"));
  EXPECT_THAT(log_, ::testing::Not(HasSubstr("prefix cache: kept")));
  EXPECT_EQ(Serve({Prompt(100)}), Cached{0});
}

TEST_F(Restarts, APlaceThatTakesNoFileIsToldAtTheStart) {
  Serve({Prompt(100)});
  // As root writes anywhere: the name beside the file is taken, by what nobody clears away.
  const std::string temporary = FileOf(1) + ".tmp." + std::to_string(getpid());
  std::filesystem::create_directories(temporary + "/x");
  EXPECT_EQ(Serve({Prompt(100)}), Cached{96}) << "what is there is read";
  EXPECT_THAT(log_, HasSubstr("rank 1 will keep nothing over a restart: " + temporary));
}

TEST_F(Restarts, WhatAKilledProcessLeftIsGoneAtTheStart) {
  Serve({Prompt(100)});
  const std::string left = FileOf(1) + ".tmp.1";
  std::ofstream(left) << "half";
  Serve({});
  EXPECT_FALSE(FileExists(left));
}

// As when a peer is lost or rank 0 gets a signal while pages are read or written.
TEST_F(Restarts, ALossEndsReadingAndWriting) {
  ranks_ = 1;
  Serve({Prompt(100)});
  const std::string before = Files();
  testing::OnRanks(1, [&](Group& group) {
    testing::FakeModel model({64, 8, 200, 100}, testing::FakeSlice(0, 1));
    int asked = 0;
    const auto health = [&]() -> Status {
      return ++asked < 3 ? OkStatus() : PeerLostError("rank 1 (node, pid 1) is gone");
    };
    KeptCache cache(Of(0), kKey, health);
    const auto restored = cache.Restore(model, group, testing::FakeNames(1));
    EXPECT_EQ(KindOf(restored.status()), ErrorKind::kPeerLost) << restored.status();
    EXPECT_LE(asked, 4);
    asked = 0;
    KeptBlocks blocks;
    for (int32_t i = 0; i < 6; ++i) {
      blocks.blocks.push_back(i);
      blocks.chains.push_back({i - 1, {}});
    }
    EXPECT_EQ(KindOf(cache.Save(blocks, model, group, testing::FakeNames(1))),
              ErrorKind::kPeerLost);
    EXPECT_LE(asked, 4);
    EXPECT_FALSE(cache.saving());
  });
  EXPECT_EQ(Files(), before);
}

TEST_F(Restarts, ASaveOfNothingNewWritesNothing) {
  Serve({Prompt(100)});
  const std::string before = Files();
  Serve({});
  EXPECT_EQ(Files(), before);
  std::filesystem::remove(FileOf(1));
  const std::string other = ReadAll(FileOf(0));
  Serve({});  // cold, and asked for nothing
  EXPECT_EQ(ReadAll(FileOf(0)), other);
}

TEST_F(Restarts, AnEndThatIsNotInOrderKeepsNothing) {
  Serve({Prompt(100)}, ErrorKind::kUsage);
  EXPECT_FALSE(FileExists(FileOf(0)));
}

TEST_F(Restarts, NothingIsWrittenWhereARankHasNoDirectory) {
  without_ = 1;
  Serve({Prompt(100)});
  EXPECT_FALSE(FileExists(Of(0)));
  EXPECT_THAT(log_, HasSubstr("rank 1 (node, pid 1) has no --prefix-cache-dir"));
  // `lockstep run` as rank 0 of workers that have one.
  without_ = 0;
  Serve({Prompt(100)});
  EXPECT_FALSE(FileExists(Of(1)));
  EXPECT_EQ(log_, "");
}

// As after a loss of a rank: the engine goes on over another executor, whose pages are new.
TEST_F(Restarts, AGroupThatFormsAgainTakesBackTheSaveBefore) {
  ranks_ = 1;
  Serve({Prompt(100)});
  std::atomic<bool> lost{false};
  Arrangement setup;
  setup.health = [&]() -> Status {
    return lost ? PeerLostError("rank 1 (node, pid 1) is gone") : OkStatus();
  };
  const SchedulerLimits& limits = setup.limits;
  testing::OnRanks(1, [&](Group& group) {
    testing::FakeModel model(
        {limits.max_rows, limits.max_outputs, limits.max_model_len, limits.kv_blocks},
        testing::FakeSlice(0, 1));
    testing::FakeModel next = model;
    const auto executor_for = [&](testing::FakeModel& of) {
      return std::move(*TensorParallelExecutor::Create(of, group, testing::FakeSlice(0, 1),
                                                       testing::FakeNames(1), nullptr, nullptr,
                                                       std::make_unique<KeptCache>(Of(0), kKey)));
    };
    const auto executor = executor_for(model), next_executor = executor_for(next);
    Engine engine(testing::OptionsOf(setup), executor.get());
    EXPECT_EQ(Submit(engine, Ask(Prompt(70, 5), 20)).summary.usage.cached_tokens, 0);
    lost = true;
    while (engine.status().ok()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    lost = false;
    engine.Resume(limits, next_executor.get());
    for (const auto& [prompt, cached] : {std::pair{Prompt(100), 96}, std::pair{Prompt(70, 5), 0}}) {
      const Answer answer = Submit(engine, Ask(prompt, 20));
      EXPECT_EQ(answer.all.ids, GreedyReference(prompt, 20));
      EXPECT_EQ(answer.summary.usage.cached_tokens, cached);
    }
    EXPECT_TRUE(engine.Stop(ErrorKind{0}).ok());
  });
}

}  // namespace
}  // namespace lockstep
