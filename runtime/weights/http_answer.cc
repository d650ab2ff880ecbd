#include "runtime/weights/http_answer.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "runtime/base/digest.h"

namespace lockstep {
namespace {

constexpr uint64_t kMostErrorBytes = uint64_t{1} << 20;  // of an error's page
constexpr uint64_t kLongestRetryAfterS = 60;

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return lower;
}

std::string_view Trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// kUnknownBytes if it is no number.
uint64_t Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc() && end == text.data() + text.size() && !text.empty();
  return good ? value : kUnknownBytes;
}

// "bytes 0-99/1000" and "bytes */1000"; what is missing is kUnknownBytes.
struct ContentRange {
  uint64_t first = kUnknownBytes, last = kUnknownBytes, size = kUnknownBytes;
};

ContentRange ParseContentRange(std::string_view text) {
  ContentRange range;
  constexpr std::string_view kUnit = "bytes ";
  if (text.substr(0, kUnit.size()) != kUnit) return range;
  text.remove_prefix(kUnit.size());
  const size_t slash = text.find('/'), dash = text.find('-');
  if (slash == std::string_view::npos) return range;
  range.size = Number(Trimmed(text.substr(slash + 1)));
  if (dash == std::string_view::npos || dash > slash) return range;
  range.first = Number(Trimmed(text.substr(0, dash)));
  range.last = Number(Trimmed(text.substr(dash + 1, slash - dash - 1)));
  return range;
}

// Whether `text`, names with commas between them, has this one.
bool Lists(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    if (Trimmed(text.substr(0, comma)) == name) return true;
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return false;
}

std::string StridedText(const HttpRequest& request) {
  return absl::StrFormat("%d-%d-%d-%d", request.offset, request.piece_bytes, request.stride,
                         request.out.size() / request.piece_bytes);
}

}  // namespace

std::string RangeText(const HttpRequest& request) {
  if (request.piece_bytes > 0) return "strided=" + StridedText(request);
  return absl::StrFormat("bytes=%d-%d", request.offset, request.offset + request.out.size() - 1);
}

void HttpAnswer::TakeHeader(std::string_view line) {
  if (line.substr(0, 5) == "HTTP/") {  // the first, or of a redirect's target
    length_ = kUnknownBytes;
    head_complete_ = false;
    range_ = etag_ = encoding_ = media_type_ = digest_ = "";
    retry_after_ms_ = 0;
    offers_strided_ = false;
    const size_t space = line.find(' ');
    const uint64_t status =
        space == std::string_view::npos ? 0 : Number(line.substr(space + 1).substr(0, 3));
    code_ = status < 1000 ? static_cast<int>(status) : 0;
    return;
  }
  if (Trimmed(line).empty()) head_complete_ = true;
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) return;
  const std::string key = Lower(line.substr(0, colon));
  const std::string value(Trimmed(line.substr(colon + 1)));
  if (key == "content-length") length_ = Number(value);
  if (key == "content-range") range_ = value;
  if (key == "etag") etag_ = value;
  if (key == "accept-ranges") offers_strided_ = Lists(value, "strided");
  if (key == "content-encoding") encoding_ = Lower(value);
  if (key == "content-type") media_type_ = Lower(Trimmed(value.substr(0, value.find(';'))));
  if (key == Lower(kDigestHeader)) digest_ = Lower(value);
  if (key == "retry-after") {
    const uint64_t seconds = Number(value);  // a date is as good as nothing
    if (seconds != kUnknownBytes)
      retry_after_ms_ = static_cast<int64_t>(std::min(seconds, kLongestRetryAfterS)) * 1000;
  }
}

// That size and ETag are those of before.
Status HttpAnswer::CheckSame(uint64_t size) const {
  if (first_contact()) return OkStatus();
  if (size != request_.size_bytes) {
    return ModelError("%s: had %d bytes and now has %d: it changed meanwhile; start again",
                      request_.name, request_.size_bytes, size);
  }
  if (!request_.etag.empty() && !etag_.empty() && etag_ != request_.etag) {
    return ModelError("%s: its ETag was %s and now is %s: it changed meanwhile; start again",
                      request_.name, request_.etag, etag_);
  }
  return OkStatus();
}

Status HttpAnswer::CheckDigest() {
  if (digest_.empty()) return OkStatus();
  const uint64_t digest = Digest64(request_.out.first(bytes_));
  matches_ = digest_ == absl::StrFormat("%016x", digest);
  if (matches_) return OkStatus();
  may_pass_ = true;
  return ModelError(
      "%s: the server sent bytes with digest %s, and what came has %016x: the network, or the "
      "memory of one of the two machines, changes data",
      request_.name, digest_, digest);
}

Status HttpAnswer::Ignored() const {
  if (request_.piece_bytes > 0) {
    return ModelError(
        "%s: strided ranges were offered, but '%s' is answered with the whole file: something "
        "between here and the server changes requests; ask it directly",
        request_.name, RangeText(request_));
  }
  return ModelError(
      "%s: the server ignores ranges (it answers with the whole file); use one that serves parts "
      "of files, such as lockstep files",
      request_.name);
}

// A 206.
Status HttpAnswer::CheckPart() {
  const ContentRange range = ParseContentRange(range_);
  const uint64_t last = request_.offset + request_.out.size() - 1;
  if (range.size == kUnknownBytes || range.size == 0 || range.first != request_.offset ||
      range.last < range.first) {
    return ModelError("%s: was asked for bytes %d-%d, but answered with Content-Range '%s'",
                      request_.name, request_.offset, last, range_);
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckSame(range.size));
  if (range.last != std::min(last, range.size - 1)) {
    return ModelError("%s: was asked for bytes %d-%d, but answered with Content-Range '%s'",
                      request_.name, request_.offset, last, range_);
  }
  expected_ = range.last - range.first + 1;
  if (length_ != kUnknownBytes && length_ != expected_) {
    return ModelError("%s: announces %d bytes (Content-Length) for a range of %d (Content-Range)",
                      request_.name, length_, expected_);
  }
  file_size_ = range.size;
  return OkStatus();
}

// A 206 to a request for pieces.
Status HttpAnswer::CheckStrided() {
  const std::string asked = "strided " + StridedText(request_) + "/";
  const bool same = std::string_view(range_).substr(0, asked.size()) == asked;
  const uint64_t size = same ? Number(std::string_view(range_).substr(asked.size())) : 0;
  if (!same || size == kUnknownBytes) {
    return ModelError("%s: was asked for '%s', but answered with Content-Range '%s'", request_.name,
                      RangeText(request_), range_);
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckSame(size));
  expected_ = request_.out.size();
  if (length_ != kUnknownBytes && length_ != expected_) {
    return ModelError("%s: announces %d bytes (Content-Length) for a range of %d (Content-Range)",
                      request_.name, length_, expected_);
  }
  file_size_ = size;
  return OkStatus();
}

// A 200, which is right only where everything was asked for.
Status HttpAnswer::CheckWhole() {
  if (request_.offset != 0 || request_.piece_bytes > 0) return Ignored();
  if (length_ != kUnknownBytes) {
    LOCKSTEP_RETURN_IF_ERROR(CheckSame(length_));
    if (length_ > request_.out.size()) return Ignored();
  } else if (!first_contact() && request_.out.size() != request_.size_bytes) {
    return Ignored();
  }
  expected_ = length_;  // if it is unknown, the body's end is the file's
  file_size_ = length_;
  return OkStatus();
}

Status HttpAnswer::Check() {
  checked_ = true;
  if (code_ == 200 || code_ == 206) {
    if (!encoding_.empty() && encoding_ != "identity") {
      return ModelError("%s: the server answered with Content-Encoding %s, which was not asked for",
                        request_.name, encoding_);
    }
    if (code_ == 200) return CheckWhole();
    return request_.piece_bytes > 0 ? CheckStrided() : CheckPart();
  }
  discard_ = true;
  if (absent()) return ModelError("%s: is not there (status %d)", request_.name, code_);
  if (code_ == 416) {
    file_size_ = ParseContentRange(range_).size;
    if (first_contact() && file_size_ == 0) return OkStatus();
    if (request_.piece_bytes > 0)
      return ModelError("%s: the server refuses '%s'", request_.name, RangeText(request_));
    return ModelError("%s: the server has no bytes from %d on; the file became shorter",
                      request_.name, request_.offset);
  }
  if (code_ == 401 || code_ == 403) {
    return UsageError("%s: refused (status %d); %s", request_.name, code_, request_.refused_remedy);
  }
  may_pass_ = code_ >= 500 || code_ == 429 || code_ == 408;
  return ModelError("%s: the server answered with status %d", request_.name, code_);
}

bool HttpAnswer::TakeBody(std::span<const std::byte> bytes) {
  if (!checked_) refusal_ = Check();
  if (discard_) {
    discarded_ += bytes.size();
    return discarded_ <= kMostErrorBytes;
  }
  if (!refusal_.ok()) return false;
  const uint64_t room = std::min<uint64_t>(expected_, request_.out.size()) - bytes_;
  if (bytes.size() > room) {
    refusal_ = expected_ == kUnknownBytes
                   ? Ignored()
                   : ModelError("%s: sends more than the %d bytes that it announced", request_.name,
                                expected_);
    return false;
  }
  std::memcpy(request_.out.data() + bytes_, bytes.data(), bytes.size());
  bytes_ += bytes.size();
  return true;
}

Status HttpAnswer::End(bool whole, const std::string& broken) {
  if (!head_complete_) {
    may_pass_ = true;
    return ModelError("%s: %s", request_.name,
                      broken.empty() ? "the answer ended inside its head" : broken);
  }
  const bool final_head = code_ < 300 || code_ >= 400;  // no redirect's
  if (!checked_ && (whole || final_head)) refusal_ = Check();
  if (!refusal_.ok()) return refusal_;
  if (discard_) return OkStatus();  // an empty file
  if (whole && expected_ == kUnknownBytes) expected_ = file_size_ = bytes_;
  if (whole && !first_contact() && file_size_ != request_.size_bytes) return CheckSame(file_size_);
  if (checked_ && bytes_ == expected_) return CheckDigest();
  may_pass_ = true;
  if (!checked_) return ModelError("%s: %s", request_.name, broken);
  return ModelError("%s: the answer ended after %d of %d bytes%s", request_.name, bytes_,
                    expected_ == kUnknownBytes ? request_.out.size() : expected_,
                    broken.empty() ? "" : ": " + broken);
}

}  // namespace lockstep
