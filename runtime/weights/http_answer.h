// One answer to a request for a range of a file: is it what was asked for? Knows no HTTP library.
//
// A range is one of bytes, or of the unit "strided", which servers offer that are lockstep files:
//
//     Range: strided=FIRST-BYTES-STRIDE-COUNT
//     Content-Range: strided FIRST-BYTES-STRIDE-COUNT/SIZE
//
// These are COUNT pieces of BYTES bytes, one behind the other, of which the first begins at FIRST
// of the file and each other STRIDE behind the one before.
//
// The same servers say the digest of a range (XXH3 of its bytes, 16 hexadecimal digits) before they
// send it, if it has at most kMostDigestBytes, lies within kMostDigestSpan, and the request wants
// it:
//
//     Lockstep-Want-Digest: xxh3
//     Lockstep-Digest: 9f1c...
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep {

inline constexpr uint64_t kUnknownBytes = std::numeric_limits<uint64_t>::max();
inline constexpr char kDigestHeader[] = "Lockstep-Digest";
inline constexpr char kWantDigestHeader[] = "Lockstep-Want-Digest";
inline constexpr char kDigestName[] = "xxh3";
inline constexpr uint64_t kMostDigestBytes = uint64_t{64} << 20;
inline constexpr uint64_t kMostDigestSpan = uint64_t{1} << 30;
inline constexpr uint64_t kMostDigestPieces = uint64_t{1} << 16;

// What is asked for, and what is known of the file.
struct HttpRequest {
  std::string name;  // of the file, for errors
  uint64_t offset = 0;
  std::span<std::byte> out;  // at least one byte
  // Not 0: `out` is of pieces of `piece_bytes` that begin `stride` apart, from `offset` on.
  uint64_t piece_bytes = 0;
  uint64_t stride = 0;
  // kUnknownBytes: this is the first request for the file; `out` may reach beyond its end then.
  uint64_t size_bytes = kUnknownBytes;
  std::string etag;            // of the first answer; "" if there was none
  std::string refused_remedy;  // what to do where access is refused
};

// What stands behind "Range: ".
std::string RangeText(const HttpRequest& request);

// The answer to `request`, which must outlive it. Fed with lines of the head and then with pieces
// of the body; of a redirect, both of them one after the other.
class HttpAnswer {
 public:
  explicit HttpAnswer(const HttpRequest& request) : request_(request) {}

  void TakeHeader(std::string_view line);
  // False if the rest is of no use: the transfer may end.
  bool TakeBody(std::span<const std::byte> bytes);
  // After the last byte, or where the connection broke (`whole` false, and `broken` says how): OK
  // if all that was asked for is there.
  Status End(bool whole, const std::string& broken);

  int status() const { return code_; }
  uint64_t bytes() const { return bytes_; }  // of the range, from its beginning
  // Of these, how many are right as far as one can tell: a digest speaks of all or none.
  uint64_t usable_bytes() const { return digest_.empty() || matches_ ? bytes_ : 0; }
  uint64_t size_bytes() const { return file_size_; }  // of the file; known after End
  const std::string& etag() const { return etag_; }
  const std::string& media_type() const { return media_type_; }
  bool offers_strided() const { return offers_strided_; }
  int64_t retry_after_ms() const { return retry_after_ms_; }
  bool absent() const { return code_ == 404 || code_ == 410; }
  // Whether the error of End may pass: the connection, or a server in trouble.
  bool may_pass() const { return may_pass_; }

 private:
  Status Check();
  Status CheckPart();
  Status CheckStrided();
  Status CheckWhole();
  Status CheckSame(uint64_t size) const;
  Status CheckDigest();
  Status Ignored() const;
  bool first_contact() const { return request_.size_bytes == kUnknownBytes; }

  const HttpRequest& request_;
  int code_ = 0;
  uint64_t length_ = kUnknownBytes;
  std::string range_, etag_, encoding_, media_type_, digest_;
  int64_t retry_after_ms_ = 0;
  bool offers_strided_ = false;

  bool head_complete_ = false;
  bool checked_ = false;
  Status refusal_ = OkStatus();
  bool discard_ = false;  // the body is an error's page
  uint64_t discarded_ = 0;
  uint64_t expected_ = 0;
  uint64_t bytes_ = 0;
  uint64_t file_size_ = kUnknownBytes;
  bool matches_ = false;  // what came has the digest
  bool may_pass_ = false;
};

}  // namespace lockstep
