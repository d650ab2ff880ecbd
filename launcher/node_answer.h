// What a node says of its rank, in answer to `lockstep up`, `down` and `status`: one JSON object,
// whose bytes come from another machine and from what a program wrote into its log.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep {

// 0 and empty: not said.
struct RankFacts {
  std::string state;       // "running", "ended", "absent", or what came of `down`
  int64_t pid = 0;         // of the last process that was started
  int64_t started_at = 0;  // seconds since 1970
  std::string serves;      // a URL
  std::string health;      // what it answered there; AskHealth in node_process.h
  std::string log;         // its last lines, of a rank that has ended
};

// How it is sent, and what --json shows of it: what is known.
nlohmann::ordered_json JsonOf(const RankFacts& facts);

// Takes over what RankFacts has and nothing else, as Printable text. An error: no such object, or
// numbers that cannot be.
StatusOr<RankFacts> ParseRankFacts(std::string_view text);

// `text` without what a terminal obeys: control characters are written as \x1b, but for the ends of
// lines where `lines` allows several; so are bytes that are no UTF-8.
std::string Printable(std::string_view text, bool lines);

}  // namespace lockstep
