#include "launcher/file_range.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

FileRange OfBytes(uint64_t begin, uint64_t end, uint64_t size) {
  return FileRange{{begin, end - begin, 0, 1},
                   absl::StrFormat("bytes %d-%d/%d", begin, end - 1, size)};
}

std::optional<FileRange> ParseBytes(std::string_view text, uint64_t size) {
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::optional<uint64_t> first = Number(text.substr(0, dash));
  const std::optional<uint64_t> last = Number(text.substr(dash + 1));
  if (dash == 0) {
    if (!last.has_value() || *last == 0 || size == 0) return std::nullopt;
    return OfBytes(size - std::min(*last, size), size, size);
  }
  const bool open_end = dash + 1 == text.size();
  if (!first.has_value() || (!last.has_value() && !open_end) || *first >= size) return std::nullopt;
  if (open_end) return OfBytes(*first, size, size);
  if (*last < *first) return std::nullopt;
  return OfBytes(*first, std::min(*last, size - 1) + 1, size);
}

std::optional<FileRange> ParseStrided(std::string_view text, uint64_t size) {
  std::array<uint64_t, 4> numbers{};
  std::string_view left = text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const size_t dash = std::min(left.find('-'), left.size());
    const std::optional<uint64_t> number = Number(left.substr(0, dash));
    const bool last = i + 1 == numbers.size();
    if (!number.has_value() || (dash == left.size()) != last) return std::nullopt;
    numbers[i] = *number;
    if (!last) left.remove_prefix(dash + 1);
  }
  const auto [first, bytes, stride, count] = numbers;
  uint64_t end = 0;
  if (bytes == 0 || count == 0 || stride < bytes ||
      __builtin_mul_overflow(count - 1, stride, &end) || __builtin_add_overflow(end, bytes, &end) ||
      __builtin_add_overflow(end, first, &end) || end > size) {
    return std::nullopt;
  }
  return FileRange{{first, bytes, stride, count}, absl::StrFormat("strided %s/%d", text, size)};
}

// One call of PieceReader::Read reads so much, gaps included, and so often.
constexpr uint64_t kMostRead = uint64_t{4} << 20;
constexpr int kMostReads = 64;

// As much of `out` as the file has from `offset` on.
size_t ReadAt(int fd, uint64_t offset, std::span<std::byte> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace

std::optional<FileRange> ParseFileRange(std::string_view text, uint64_t size) {
  constexpr std::string_view kBytes = "bytes=", kStrided = "strided=";
  if (text.starts_with(kBytes)) return ParseBytes(text.substr(kBytes.size()), size);
  if (text.starts_with(kStrided)) return ParseStrided(text.substr(kStrided.size()), size);
  return std::nullopt;
}

size_t PieceReader::Read(int fd, std::span<std::byte> out) {
  size_t done = 0;
  uint64_t read = 0;
  for (int i = 0; i < kMostReads && read < kMostRead && done < out.size() && !this->done(); ++i) {
    const size_t got = ReadOnce(fd, out.subspan(done), &read);
    if (got == 0) return 0;
    done += got;
  }
  return done;
}

// Whole pieces with what lies between them, if that fits, and then pushed together; else as much
// of one.
size_t PieceReader::ReadOnce(int fd, std::span<std::byte> out, uint64_t* read) {
  if (within_ == 0 && left_.count > 1 && left_.stride + left_.bytes <= out.size()) {
    const uint64_t pieces = std::min(left_.count, (out.size() - left_.bytes) / left_.stride + 1);
    const uint64_t all = (pieces - 1) * left_.stride + left_.bytes;
    if (ReadAt(fd, left_.offset, out.first(all)) < all) return 0;
    for (uint64_t i = 1; i < pieces; ++i)
      std::memmove(out.data() + i * left_.bytes, out.data() + i * left_.stride, left_.bytes);
    *read += all;
    left_.offset += pieces * left_.stride;
    left_.count -= pieces;
    return pieces * left_.bytes;
  }
  const size_t bytes = std::min<uint64_t>(out.size(), left_.bytes - within_);
  if (ReadAt(fd, left_.offset + within_, out.first(bytes)) < bytes) return 0;
  *read += bytes;
  within_ += bytes;
  if (within_ == left_.bytes) {
    within_ = 0;
    left_.offset += left_.stride;
    --left_.count;
  }
  return bytes;
}

}  // namespace lockstep
