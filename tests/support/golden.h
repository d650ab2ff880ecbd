// Reads the golden tensors (a plain safetensors reader of its own, so that ours is not its own
// witness).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace lockstep::testing {

inline std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("LOCKSTEP_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + relative;
}

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class Golden {
 public:
  explicit Golden(const std::string& path) : bytes_(ReadAll(path)) {
    uint64_t header = 0;
    std::memcpy(&header, bytes_.data(), 8);
    entries_ = nlohmann::json::parse(bytes_.substr(8, header));
    begin_ = 8 + header;
  }
  bool Has(const std::string& name) const { return entries_.contains(name); }
  std::vector<int64_t> Shape(const std::string& name) const {
    return entries_.at(name).at("shape").get<std::vector<int64_t>>();
  }
  std::vector<float> Floats(const std::string& name) const {
    EXPECT_EQ(entries_.at(name).at("dtype"), "F32") << name;
    return Values<float>(name);
  }
  // int32 or int64 tensors as int32.
  std::vector<int32_t> Ids(const std::string& name) const {
    if (entries_.at(name).at("dtype") == "I64") {
      const auto wide = Values<int64_t>(name);
      return std::vector<int32_t>(wide.begin(), wide.end());
    }
    return Values<int32_t>(name);
  }
  std::vector<double> Doubles(const std::string& name) const {
    EXPECT_EQ(entries_.at(name).at("dtype"), "F64") << name;
    return Values<double>(name);
  }
  // Of any type, as they lie in the file.
  std::vector<std::byte> Bytes(const std::string& name) const { return Values<std::byte>(name); }

 private:
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const auto offsets = entries_.at(name).at("data_offsets").get<std::vector<uint64_t>>();
    std::vector<T> values((offsets[1] - offsets[0]) / sizeof(T));
    if (!values.empty())
      std::memcpy(values.data(), bytes_.data() + begin_ + offsets[0], offsets[1] - offsets[0]);
    return values;
  }
  std::string bytes_;
  nlohmann::json entries_;
  uint64_t begin_ = 0;
};

}  // namespace lockstep::testing
