// NCCL and the CUDA runtime without a GPU, for ranks that are threads: a table of functions over
// ordinary memory. Kernels of sends and receives wait for their partners, one behind the other on
// their stream; what does not block is in progress until it is asked for its state; what runs on a
// GPU by itself moves here whenever somebody looks. Calls that NCCL or CUDA forbids are counted.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "collectives/nccl/nccl_library.h"

namespace lockstep {

class FakeNccl {
 public:
  int version = NCCL_VERSION_CODE;
  int devices = 8;
  int polls = 0;               // that everything NCCL begins is in progress
  bool joins_complete = true;  // false: nobody's communicator is ever ready
  int slow_abort_looks = 0;    // for which a kernel goes on after its abort
  int stuck_rank = -1;         // whose abort does not return before this object goes

  FakeNccl() { current_ = this; }
  ~FakeNccl() {
    {
      std::unique_lock lock(mutex_);
      stuck_rank = -1;
      changed_.notify_all();
      changed_.wait(lock, [this] { return aborting_ == 0; });
    }
    for (const auto& memory : {host_, device_}) {
      for (const auto& [address, block] : memory) std::free(address);
    }
    current_ = nullptr;
  }

  // The rank whose thread this is.
  static void SetRank(int rank) { rank_ = rank; }
  // At the end of a rank's thread: a group of calls that it left open would hold back the calls of
  // its next communicator.
  static void CheckThread() {
    std::lock_guard lock(current_->mutex_);
    if (depth_ != 0) current_->Fault("a group of calls was left open");
  }
  // The `nth` call of `function` ("ncclSend", "cudaMalloc") by that rank returns `code`.
  void FailCall(const std::string& function, int rank, int nth, int code) {
    std::lock_guard lock(mutex_);
    failing_[{function, rank}] = {nth, code};
  }
  // That rank's communicators have failed; with `ends_kernels` those on the GPU stop at once.
  void FailCommunicator(int rank, ncclResult_t result, const char* words, bool ends_kernels) {
    std::lock_guard lock(mutex_);
    words_ = words;
    for (auto& [handle, communicator] : communicators_) {
      if (communicator->rank != rank) continue;
      communicator->state = result;
      communicator->quits = ends_kernels;
    }
  }

  // What is not given back, and what must not be called so; empty: nothing.
  std::string Faults() {
    std::lock_guard lock(mutex_);
    std::string faults;
    for (const std::string& fault : faults_) faults += fault + "; ";
    const auto left = [&](const char* what, size_t count) {
      if (count > 0) faults += std::to_string(count) + " " + what + " left; ";
    };
    left("blocks of pinned memory", host_.size());
    left("blocks of device memory", device_.size());
    left("streams", streams_.size());
    left("events", events_.size());
    left("communicators", communicators_.size());
    return faults;
  }
  int Count(const std::string& function) {
    std::lock_guard lock(mutex_);
    return counts_[function];
  }
  int ids() {
    std::lock_guard lock(mutex_);
    return ids_;
  }

  static const nccl::Library& Table();

 private:
  using Op = std::function<bool()>;  // true: it has ended
  struct Block {
    size_t bytes;
    int rank;
  };
  struct Stream {
    int device, rank;
    std::deque<Op> work;
    uint64_t queued = 0, done = 0;
  };
  struct Event {
    Stream* stream = nullptr;
    uint64_t target = 0;
  };
  struct Message {
    const void* data;
    size_t bytes;
    bool taken = false;
  };
  struct Sum {
    std::map<int, std::vector<float>> values;
    int copied = 0;
  };
  struct Clique {
    int size;
    std::map<int, int> device_of;  // by rank
    std::set<int> connected, finalizing, gone;
    std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> messages;  // from, to
    std::map<int, Sum> sums;
  };
  struct Communicator {
    int rank, device;
    std::shared_ptr<Clique> clique;
    ncclResult_t state = ncclSuccess;
    int polls = 0;
    std::function<bool()> ready;
    std::function<void()> then;
    int sums = 0, kernels = 0;
    bool finalized = false, aborted = false, quits = false;
  };
  using Shared = std::shared_ptr<Communicator>;
  struct Call {
    enum Kind { kSend, kReceive, kSum } kind;
    const void* from;
    void* to;
    size_t bytes;
    int peer;
    Shared communicator;
    Stream* stream;
  };

  // Every function of the table begins here: counts, and what is injected.
  int Enter(const char* function) {
    ++counts_[function];
    const auto found = failing_.find({function, rank_});
    if (found == failing_.end() || --found->second.first != 0) return 0;
    return found->second.second;
  }
  void Fault(const std::string& what) { faults_.insert(what); }
  Shared Find(ncclComm_t handle) {
    const auto found = communicators_.find(handle);
    if (found != communicators_.end()) return found->second;
    Fault("a communicator that has ended was used");
    return nullptr;
  }
  void CheckInside(const std::map<void*, Block>& memory, const void* address, size_t bytes) {
    const char* at = static_cast<const char*>(address);
    for (const auto& [begin, block] : memory) {
      const char* first = static_cast<const char*>(begin);
      if (at >= first && at + bytes <= first + block.bytes) return;
    }
    Fault("memory of the wrong kind or place was used");
  }
  // A call takes memory on the thread's current GPU.
  void CheckDevice(int device) {
    if (current_device_ != device) Fault("a thread was on another GPU than its group");
  }

  // What the GPUs do.
  void Progress() {
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& [handle, stream] : streams_) {
        while (!stream->work.empty() && stream->work.front()()) {
          stream->work.pop_front();
          ++stream->done;
          moved = true;
        }
      }
    }
  }
  static void Queue(Stream* stream, Op op) {
    stream->work.push_back(std::move(op));
    ++stream->queued;
  }

  // NCCL begins what `then` does when `ready`.
  ncclResult_t Later(const Shared& communicator, std::function<bool()> ready,
                     std::function<void()> then) {
    if (nccl::Failed(communicator->state)) return communicator->state;
    communicator->state = ncclInProgress;
    communicator->polls = polls;
    communicator->ready = std::move(ready);
    communicator->then = std::move(then);
    return polls > 0 ? ncclInProgress : Look(communicator);
  }
  ncclResult_t Look(const Shared& communicator) {
    if (communicator->state != ncclInProgress || --communicator->polls >= 0) {
      return communicator->state;
    }
    if (!communicator->ready()) return ncclInProgress;
    if (communicator->state == ncclInProgress) communicator->state = ncclSuccess;
    const std::function<void()> then = std::move(communicator->then);
    Forget(*communicator);
    then();
    return communicator->state;
  }

  // What is left to do holds the communicator itself.
  static void Forget(Communicator& communicator) {
    communicator.ready = nullptr;
    communicator.then = nullptr;
  }

  // One group of calls: a kernel that ends when each of them has met its partner.
  static Op Kernel(std::vector<Call> calls, int slow_abort_looks) {
    struct State {
      std::vector<std::shared_ptr<Message>> sent;
      std::vector<bool> met;
      bool posted = false;
      int looks;
    };
    const auto state = std::make_shared<State>();
    state->met.resize(calls.size());
    state->looks = slow_abort_looks;
    return [calls = std::move(calls), state] {
      Communicator& communicator = *calls[0].communicator;
      if (communicator.aborted || communicator.quits) {
        communicator.kernels = 0;
        return --state->looks < 0;
      }
      Clique& clique = *communicator.clique;
      const int me = communicator.rank;
      for (const Call& call : calls) {
        if (state->posted || call.kind != Call::kSend) continue;
        state->sent.push_back(std::make_shared<Message>(Message{call.from, call.bytes}));
        clique.messages[{me, call.peer}].push_back(state->sent.back());
      }
      state->posted = true;
      for (size_t i = 0; i < calls.size(); ++i) {
        if (state->met[i]) continue;
        if (calls[i].kind == Call::kReceive) state->met[i] = Take(clique, me, calls[i]);
        if (calls[i].kind == Call::kSum) state->met[i] = Add(clique, me, calls[i]);
        if (calls[i].kind == Call::kSend) state->met[i] = true;
      }
      const auto done = [](bool value) { return value; };
      const bool ended = std::all_of(state->met.begin(), state->met.end(), done) &&
                         std::all_of(state->sent.begin(), state->sent.end(),
                                     [](const auto& message) { return message->taken; });
      communicator.kernels -= ended;
      return ended;
    };
  }
  static bool Take(Clique& clique, int me, const Call& call) {
    auto& messages = clique.messages[{call.peer, me}];
    if (messages.empty()) return false;
    if (messages.front()->bytes != call.bytes) current_->Fault("a message of another length came");
    std::memcpy(call.to, messages.front()->data, std::min(call.bytes, messages.front()->bytes));
    messages.front()->taken = true;
    messages.pop_front();
    return true;
  }
  // From the last rank to the first, which no other group does.
  static bool Add(Clique& clique, int me, const Call& call) {
    Sum& sum = clique.sums[call.peer];
    const size_t count = call.bytes / sizeof(float);
    if (sum.values.find(me) == sum.values.end()) {
      const float* values = static_cast<const float*>(call.from);
      sum.values[me].assign(values, values + count);
    }
    if (static_cast<int>(sum.values.size()) < clique.size) return false;
    std::vector<float> all(count);
    for (auto rank = sum.values.rbegin(); rank != sum.values.rend(); ++rank) {
      for (size_t i = 0; i < count; ++i) {
        all[i] = rank == sum.values.rbegin() ? rank->second[i] : all[i] + rank->second[i];
      }
    }
    if (count > 0) std::memcpy(call.to, all.data(), call.bytes);
    if (++sum.copied == clique.size) clique.sums.erase(call.peer);
    return true;
  }

  friend struct FakeTable;
  static inline FakeNccl* current_ = nullptr;
  static inline thread_local int rank_ = -1;
  static inline thread_local int current_device_ = 0;
  static inline thread_local int depth_ = 0;
  static inline thread_local std::vector<Call> calls_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, int> counts_;
  std::map<std::pair<std::string, int>, std::pair<int, int>> failing_;
  std::set<std::string> faults_;
  std::string words_;
  std::map<void*, Block> host_, device_;
  std::map<cudaStream_t, std::unique_ptr<Stream>> streams_;
  std::map<cudaEvent_t, std::unique_ptr<Event>> events_;
  std::map<ncclComm_t, Shared> communicators_;
  std::map<std::string, std::shared_ptr<Clique>> cliques_;  // by id
  int ids_ = 0;
  int aborting_ = 0;
};

}  // namespace lockstep

#include "tests/collectives/nccl_fake_table.h"
