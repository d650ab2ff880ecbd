// Writes small safetensors files for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace lockstep::testing {

class SafetensorsWriter {
 public:
  void Add(const std::string& name, const std::string& type, const std::vector<int64_t>& shape,
           const std::string& bytes) {
    std::string dimensions;
    for (const int64_t size : shape)
      dimensions += (dimensions.empty() ? "" : ",") + std::to_string(size);
    header_ += (header_.empty() ? "\"" : ",\"") + name + R"(":{"dtype":")" + type +
               R"(","shape":[)" + dimensions + R"(],"data_offsets":[)" +
               std::to_string(data_.size()) + "," + std::to_string(data_.size() + bytes.size()) +
               "]}";
    data_ += bytes;
  }
  std::string File() const {
    const std::string header = "{" + header_ + "}";
    const uint64_t size = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    return bytes + header + data_;
  }

 private:
  std::string header_;
  std::string data_;
};

// The bytes of numbers as they lie in memory.
template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace lockstep::testing
