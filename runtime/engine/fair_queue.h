// Who waits, and whose turn it is: the best priority first, and within a priority the client that
// got the least so far; of equals the one whose request came first, by ids. A pure state machine,
// like the scheduler, whose part it is.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "runtime/decode/sampler.h"
#include "runtime/decode/sampling_params.h"

namespace lockstep {

struct ScheduledRequest {
  uint64_t id = 0;
  std::vector<int32_t> tokens;  // the prompt, not empty; and what was sampled before a preemption
  int64_t max_tokens = 0;       // still to sample, at least 1
  TokenSet token_set;
  SamplingParams params;
  std::string grammar;   // what the answer must follow; empty: nothing
  std::string client;    // whose request it is; shares are fair between clients
  double weight = 1;     // of the client's share, above 0
  int32_t priority = 0;  // lower is better
  int64_t sampled = 0;   // of `tokens`, the last ones: the answer so far
};

// Service is counted in rows, divided by the client's weight, for each priority by itself. A client
// that begins (nothing of it waited or ran) starts at least where the one of the present clients
// stands that got least: being away saves nothing up. (Sheng et al., "Fairness in Serving Large
// Language Models", 2024.)
class FairQueue {
 public:
  // Behind what its client has with the same priority. The request is present from now on.
  void Push(ScheduledRequest request);
  // A preempted request, which is present: before what its client has with the same priority.
  void Return(ScheduledRequest request);
  // The request whose turn it is; null: nobody waits.
  ScheduledRequest* Next();
  // Takes out what Next returned. It stays present until Leave.
  ScheduledRequest Pop();
  // Takes out a waiting request, which leaves; false if the id does not wait.
  bool Remove(uint64_t id);
  // A popped request of this client and priority has ended.
  void Leave(int32_t priority, const std::string& client);
  // A present request of this client and priority got `rows` rows of a step.
  void Charge(int32_t priority, const std::string& client, double weight, int64_t rows);
  // What a present client got, in rows by weight, with what it started from.
  double service(int32_t priority, const std::string& client) const;

  int64_t size() const { return size_; }

 private:
  struct Client {
    double service = 0;
    int64_t present = 0;  // its requests, waiting and running
    std::deque<ScheduledRequest> waiting;
  };
  // Clients that have left stay, with what they got, while any is present: there are as many as
  // there are API keys.
  struct Class {
    std::map<std::string, Client> clients;
    double now = 0;       // what the present client with the least has got; never falls
    int64_t present = 0;  // requests
    int64_t waiting = 0;
  };
  Client* Best();

  std::map<int32_t, Class> classes_;  // by priority; none without a present request
  int64_t size_ = 0;
};

}  // namespace lockstep
