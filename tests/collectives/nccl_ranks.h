// Ranks as threads with a group over FakeNccl each, their messages over TCP as a membership has it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/nccl/nccl_group.h"
#include "tests/collectives/nccl_fake.h"
#include "tests/transport/meshes.h"

namespace lockstep {

class NcclRanks {
 public:
  int size;
  GroupOptions common;
  int64_t start_timeout_ms = 30'000;
  int local_size;
  // A rank that ends with an error tells the others why, as a control channel would.
  bool tells = true;

  explicit NcclRanks(int ranks) : size(ranks), local_size(ranks) {
    common.size = ranks;
    common.spin_us = 0;
    common.slot_bytes = 64 << 10;
    for (int rank = 0; rank < ranks; ++rank)
      common.names.push_back(RankInfo{rank, 4700 + rank, "test", ""}.Name());
    NewLifelines();
  }

  void NewLifelines() {
    lifelines_.clear();
    for (int rank = 0; rank < size; ++rank) lifelines_.push_back(std::make_shared<Lifeline>());
  }
  Lifeline& lifeline(int rank) { return *lifelines_[rank]; }

  // Collective; each round of calls makes one group.
  StatusOr<std::unique_ptr<Group>> Open(int rank) {
    Round& round = RoundOf(rank);
    GroupOptions options = common;
    options.rank = rank;
    options.lifeline = lifelines_[rank];
    GroupOptions messages = options;
    messages.slot_bytes = 64;
    NcclOptions nccl;
    nccl.local_rank = rank;
    nccl.local_size = local_size;
    nccl.start_timeout_ms = start_timeout_ms;
    LOCKSTEP_ASSIGN_OR_RETURN(
        nccl.messages,
        size == 1 ? MakeSingleGroup(std::move(messages))
                  : MakeLinkGroup(std::move(messages), "tcp", std::move(round.meshes[rank])));
    nccl.share = [&, rank](const std::string& text) { return Share(&round, rank, text); };
    return nccl::MakeGroup(FakeNccl::Table(), std::move(options), std::move(nccl));
  }

  // Every rank in a thread; their statuses by rank.
  std::vector<Status> RunAlone(const std::function<Status(int rank)>& body) {
    std::vector<Status> results(size);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        FakeNccl::SetRank(rank);
        results[rank] = body(rank);
        FakeNccl::CheckThread();
        Tell(results[rank]);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }
  // Same with one group.
  std::vector<Status> Run(const std::function<Status(Group&)>& body) {
    return RunAlone([&](int rank) -> Status {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, Open(rank));
      const Status result = body(*group);
      Tell(result);
      return result;
    });
  }

 private:
  void Tell(const Status& result) {
    for (int rank = 0; tells && !result.ok() && rank < size; ++rank) {
      (void)lifelines_[rank]->Break(result);
    }
  }

  struct Round {
    std::vector<Mesh> meshes;
    std::vector<std::string> texts;
    int shared = 0;
  };

  Round& RoundOf(int rank) {
    std::lock_guard lock(mutex_);
    Round& round = rounds_[opened_[rank]++];
    if (round.texts.empty()) {
      round.texts.resize(size);
      MeshesOptions mesh;
      mesh.ranks = size;
      mesh.window_bytes = LinkWindowBytes(64);
      if (size > 1) round.meshes = OpenMeshes(mesh);
    }
    return round;
  }

  StatusOr<std::vector<std::string>> Share(Round* round, int rank, const std::string& text) {
    std::unique_lock lock(mutex_);
    round->texts[rank] = text;
    ++round->shared;
    while (round->shared < size) {
      if (lifelines_[rank]->broken()) return lifelines_[rank]->reason();
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      lock.lock();
    }
    return round->texts;
  }

  std::mutex mutex_;
  std::map<int, int> opened_;  // by rank
  std::map<int, Round> rounds_;
  std::vector<std::shared_ptr<Lifeline>> lifelines_;
};

}  // namespace lockstep
