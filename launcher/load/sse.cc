#include "launcher/load/sse.h"

namespace lockstep {

bool SseReader::Push(std::string_view bytes) {
  while (!bytes.empty() && !too_long_) {
    if (std::exchange(after_return_, false) && bytes.front() == '\n') {
      bytes.remove_prefix(1);
      continue;
    }
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view part = bytes.substr(0, end);
    too_long_ = line_.size() + data_.size() + part.size() > kMostEventBytes;
    if (too_long_) break;
    if (end == std::string_view::npos) {
      line_ += part;
      break;
    }
    if (line_.empty()) {
      TakeLine(part);
    } else {
      line_ += part;
      TakeLine(line_);
      line_.clear();
    }
    after_return_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
  }
  return !too_long_;
}

void SseReader::TakeLine(std::string_view line) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
  if (std::exchange(first_line_, false) && line.starts_with(kByteOrderMark))
    line.remove_prefix(kByteOrderMark.size());
  if (line.empty()) {
    if (data_.empty()) return;
    take_(std::string_view(data_).substr(0, data_.size() - 1));
    data_.clear();
    return;
  }
  const size_t colon = line.find(':');
  if (line.substr(0, colon) != "data") return;  // a comment has no name
  std::string_view value =
      colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  data_ += value;
  data_ += '\n';
}

}  // namespace lockstep
