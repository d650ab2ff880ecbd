// Which of several replicas of a model gets a request. A pure state machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lockstep {

class Router {
 public:
  // How many tokens more than the least loaded replica the home of a group may have to do and still
  // get the group's requests.
  static constexpr int64_t kPatience = 16'384;

  // `affinity`: requests of a group go where the group's others went, unless that one is busy.
  Router(int replicas, bool affinity)
      : affinity_(affinity), outstanding_(static_cast<size_t>(replicas)) {}

  // The one with the fewest outstanding tokens, of equals the next one after who got the last
  // request; or the home of `group` (-1: none).
  int Choose(int64_t group) const;
  // A request of so many tokens, of prompt and answer together, was taken by `replica`, or ended.
  void Begin(int replica, int64_t tokens) {
    outstanding_[static_cast<size_t>(replica)] += tokens;
    last_ = static_cast<size_t>(replica);
  }
  void End(int replica, int64_t tokens) { outstanding_[static_cast<size_t>(replica)] -= tokens; }
  int64_t outstanding(int replica) const { return outstanding_[static_cast<size_t>(replica)]; }

 private:
  const bool affinity_;
  std::vector<int64_t> outstanding_;       // by replica
  size_t last_ = outstanding_.size() - 1;  // who got the last request
};

}  // namespace lockstep
