// Flat binary messages between ranks: little-endian, every length checked before it is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the wire is little-endian and so are all our nodes");

class ByteWriter {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof(T));
  }
  void PutString(std::string_view text) {
    Put(static_cast<uint32_t>(text.size()));
    const auto* raw = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), raw, raw + text.size());
  }
  template <typename T>
  void PutVector(const std::vector<T>& values) {
    static_assert(std::is_arithmetic_v<T>);
    Put(static_cast<uint32_t>(values.size()));
    const auto* raw = reinterpret_cast<const std::byte*>(values.data());
    bytes_.insert(bytes_.end(), raw, raw + values.size() * sizeof(T));
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  void Clear() { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

// Reads what ByteWriter wrote. After the first short or absurd field every read fails; ask
// `status()` once.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  T Get() {
    T value{};
    if (!Take(sizeof(T))) return value;
    std::memcpy(&value, bytes_.data() + offset_ - sizeof(T), sizeof(T));
    return value;
  }
  std::string GetString() {
    const uint32_t size = Get<uint32_t>();
    if (!Take(size)) return {};
    return std::string(reinterpret_cast<const char*>(bytes_.data() + offset_ - size), size);
  }
  template <typename T>
  std::vector<T> GetVector() {
    const uint32_t count = Get<uint32_t>();
    if (count > (bytes_.size() - offset_) / sizeof(T)) failed_ = true;
    if (failed_) return {};
    std::vector<T> values(count);
    offset_ += count * sizeof(T);
    if (count > 0)
      std::memcpy(values.data(), bytes_.data() + offset_ - count * sizeof(T), count * sizeof(T));
    return values;
  }
  size_t remaining() const { return bytes_.size() - offset_; }
  bool ok() const { return !failed_; }
  // Ok if every read succeeded and nothing is left over.
  Status Finish(std::string_view what) const {
    if (failed_) return InternalError("%s: message is cut short or malformed", std::string(what));
    if (remaining() != 0)
      return InternalError("%s: message has %d bytes too many", std::string(what), remaining());
    return OkStatus();
  }

 private:
  bool Take(size_t count) {
    if (failed_ || count > bytes_.size() - offset_) {
      failed_ = true;
      return false;
    }
    offset_ += count;
    return true;
  }
  std::span<const std::byte> bytes_;
  size_t offset_ = 0;
  bool failed_ = false;
};

}  // namespace lockstep
