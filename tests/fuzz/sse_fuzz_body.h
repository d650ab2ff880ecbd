// What tests/fuzz/sse_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/load/completion.h"
#include "launcher/load/sse.h"
#include "runtime/base/check.h"

namespace lockstep {

// The events of a whole stream, by the words of the specification: ends of lines first, then lines.
inline std::vector<std::string> EventsOf(std::string_view stream) {
  std::string text;
  for (size_t i = 0; i < stream.size(); ++i) {
    const bool second = stream[i] == '\n' && i > 0 && stream[i - 1] == '\r';
    if (!second) text += stream[i] == '\r' ? '\n' : stream[i];
  }
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  std::vector<std::string> events;
  std::string data;
  bool any = false;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    if (line.empty()) {
      if (any) events.push_back(data);
      data.clear();
      any = false;
    } else if (line == "data" || line.starts_with("data:")) {
      std::string value = line.size() > 5 ? line.substr(5) : "";
      if (value.starts_with(" ")) value.erase(0, 1);
      data += (any ? "\n" : "") + value;
      any = true;
    }
  }
  return events;
}

// The events that a reader finds in pieces of so many bytes, of which the first may be shorter.
inline std::vector<std::string> EventsInPieces(std::string_view stream, size_t first, size_t size) {
  std::vector<std::string> events;
  SseReader reader([&](std::string_view data) { events.emplace_back(data); });
  bool good = reader.Push(stream.substr(0, first));
  for (size_t at = first; at < stream.size(); at += size)
    good = reader.Push(stream.substr(at, size));
  LOCKSTEP_CHECK(good == (reader.Push("")));
  return events;
}

inline void CheckHarmless(const std::string& text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    LOCKSTEP_CHECK(byte >= 0x20 && byte != 0x7f);
  }
}

// What a stream says does not depend on its pieces, is what the specification says, and what is
// read of it is bounded and can be shown.
inline void FuzzSse(std::string_view input) {
  if (input.size() > SseReader::kMostEventBytes) return;
  const std::vector<std::string> events = EventsOf(input);
  const size_t first = input.empty() ? 0 : static_cast<unsigned char>(input[0]) % input.size();
  const size_t size = input.size() < 2 ? 1 : 1 + static_cast<unsigned char>(input[1]) % 7;
  LOCKSTEP_CHECK(EventsInPieces(input, input.size(), 1) == events);
  LOCKSTEP_CHECK(EventsInPieces(input, first, size) == events);
  for (const std::string& data : events) {
    const CompletionEvent event = ReadCompletionEvent(data);
    LOCKSTEP_CHECK(!event.done || data == "[DONE]");
    LOCKSTEP_CHECK(!event.strange || !(event.token || event.finished));
    for (const int64_t count : {event.prompt_tokens, event.completion_tokens, event.cached_tokens})
      LOCKSTEP_CHECK(count >= -1 && count <= int64_t{1} << 40);
    LOCKSTEP_CHECK(event.queue_s == -1 || (event.queue_s >= 0 && event.queue_s <= 1e9));
    CheckHarmless(event.error);
  }
  CheckHarmless(ReadServerError(input).message);
  for (const char* wanted : {"", "tiny"}) {
    const StatusOr<ServedFacts> facts = ReadModels(input, wanted);
    if (!facts.ok()) {
      CheckHarmless(MessageOf(facts.status()));
      continue;
    }
    LOCKSTEP_CHECK(!facts->model.empty() && (*wanted == '\0' || facts->model == wanted));
    LOCKSTEP_CHECK(facts->max_model_len >= 0 && facts->vocab_size >= 0);
  }
}

}  // namespace lockstep
