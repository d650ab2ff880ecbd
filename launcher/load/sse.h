// Server-sent events (text/event-stream, https://html.spec.whatwg.org/multipage/server-sent-events)
// as their bytes come, in pieces of any size. Of an event its data matters here, no name and no id.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace lockstep {

class SseReader {
 public:
  // Of a line, and of all data of an event.
  static constexpr size_t kMostEventBytes = size_t{1} << 20;

  // `take` gets the data of each event, its lines joined by '\n'; it views memory of the reader.
  explicit SseReader(std::function<void(std::string_view data)> take) : take_(std::move(take)) {}

  // The next bytes. False, now and from now on, once an event is longer than kMostEventBytes. What
  // no blank line has ended when the stream does is no event.
  bool Push(std::string_view bytes);

 private:
  void TakeLine(std::string_view line);

  const std::function<void(std::string_view)> take_;
  std::string line_;  // whose end has not come
  std::string data_;  // of an event whose end has not come: each line with its '\n'
  bool first_line_ = true;
  bool after_return_ = false;  // a '\n' would belong to the '\r' before
  bool too_long_ = false;
};

}  // namespace lockstep
