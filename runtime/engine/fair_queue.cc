#include "runtime/engine/fair_queue.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"

namespace lockstep {

void FairQueue::Push(ScheduledRequest request) {
  Class& of = classes_[request.priority];
  Client& client = of.clients[request.client];
  if (client.present++ == 0) client.service = std::max(client.service, of.now);
  ++of.present;
  ++of.waiting;
  ++size_;
  client.waiting.push_back(std::move(request));
}

void FairQueue::Return(ScheduledRequest request) {
  Class& of = classes_.at(request.priority);
  ++of.waiting;
  ++size_;
  std::deque<ScheduledRequest>& waiting = of.clients.at(request.client).waiting;
  waiting.push_front(std::move(request));
}

// The client whose turn it is.
FairQueue::Client* FairQueue::Best() {
  for (auto& [priority, of] : classes_) {
    if (of.waiting == 0) continue;
    Client* best = nullptr;
    for (auto& [name, client] : of.clients) {
      if (client.waiting.empty()) continue;
      const auto turn = [](const Client& of_client) {
        return std::pair(of_client.service, of_client.waiting.front().id);
      };
      if (best == nullptr || turn(client) < turn(*best)) best = &client;
    }
    return best;
  }
  return nullptr;
}

ScheduledRequest* FairQueue::Next() {
  Client* best = Best();
  return best == nullptr ? nullptr : &best->waiting.front();
}

ScheduledRequest FairQueue::Pop() {
  Client* best = Best();
  LOCKSTEP_CHECK(best != nullptr);
  ScheduledRequest request = std::move(best->waiting.front());
  best->waiting.pop_front();
  --classes_.at(request.priority).waiting;
  --size_;
  return request;
}

bool FairQueue::Remove(uint64_t id) {
  for (auto& [priority, of] : classes_) {
    for (auto& [name, client] : of.clients) {
      const auto found = std::find_if(client.waiting.begin(), client.waiting.end(),
                                      [id](const ScheduledRequest& r) { return r.id == id; });
      if (found == client.waiting.end()) continue;
      client.waiting.erase(found);
      --of.waiting;
      --size_;
      Leave(priority, name);
      return true;
    }
  }
  return false;
}

void FairQueue::Leave(int32_t priority, const std::string& client) {
  const auto of = classes_.find(priority);
  LOCKSTEP_CHECK(of != classes_.end());
  Client& who = of->second.clients.at(client);
  LOCKSTEP_CHECK(who.present > 0);
  --who.present;
  if (--of->second.present == 0) classes_.erase(of);
}

void FairQueue::Charge(int32_t priority, const std::string& client, double weight, int64_t rows) {
  Class& of = classes_.at(priority);
  Client& charged = of.clients.at(client);
  charged.service += static_cast<double>(rows) / weight;
  double least = charged.service;
  for (const auto& [name, other] : of.clients) {
    if (other.present > 0) least = std::min(least, other.service);
  }
  of.now = std::max(of.now, least);
}

double FairQueue::service(int32_t priority, const std::string& client) const {
  return classes_.at(priority).clients.at(client).service;
}

}  // namespace lockstep
