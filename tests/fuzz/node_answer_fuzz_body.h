// What tests/fuzz/node_answer_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "launcher/node_answer.h"
#include "runtime/base/check.h"

namespace lockstep {

// What is accepted is harmless on a terminal, and the same when it is sent on.
inline void FuzzNodeAnswer(std::string_view input) {
  const StatusOr<RankFacts> facts = ParseRankFacts(input);
  if (!facts.ok()) return;
  LOCKSTEP_CHECK(!facts->state.empty());
  LOCKSTEP_CHECK(facts->pid >= 0 && facts->pid <= INT32_MAX && facts->started_at >= 0);
  for (const std::string* text : {&facts->state, &facts->serves, &facts->health, &facts->log}) {
    for (const char c : *text) {
      const auto byte = static_cast<unsigned char>(c);
      LOCKSTEP_CHECK(byte != 0x7f && (byte >= 0x20 || text == &facts->log));
      LOCKSTEP_CHECK(byte >= 0x20 || byte == '\n' || byte == '\t');
    }
  }
  const std::string sent = JsonOf(*facts).dump();
  const StatusOr<RankFacts> again = ParseRankFacts(sent);
  LOCKSTEP_CHECK(again.ok() && JsonOf(*again).dump() == sent);
}

}  // namespace lockstep
