#include "tests/support/golden.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace lockstep::testing {

std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("LOCKSTEP_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + relative;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

struct Golden::File {
  std::string bytes;
  nlohmann::json entries;
  uint64_t begin = 0;

  std::string TypeOf(const std::string& name) const { return entries.at(name).at("dtype"); }

  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const auto offsets = entries.at(name).at("data_offsets").get<std::vector<uint64_t>>();
    std::vector<T> values((offsets[1] - offsets[0]) / sizeof(T));
    if (!values.empty())
      std::memcpy(values.data(), bytes.data() + begin + offsets[0], offsets[1] - offsets[0]);
    return values;
  }
};

Golden::Golden(const std::string& path) {
  auto file = std::make_unique<File>();
  file->bytes = ReadAll(path);
  uint64_t header = 0;
  std::memcpy(&header, file->bytes.data(), 8);
  file->entries = nlohmann::json::parse(std::string_view(file->bytes).substr(8, header));
  file->begin = 8 + header;
  file_ = std::move(file);
}
Golden::~Golden() = default;
Golden::Golden(Golden&&) noexcept = default;

bool Golden::Has(const std::string& name) const { return file_->entries.contains(name); }

std::vector<int64_t> Golden::Shape(const std::string& name) const {
  return file_->entries.at(name).at("shape").get<std::vector<int64_t>>();
}

std::vector<float> Golden::Floats(const std::string& name) const {
  EXPECT_EQ(file_->TypeOf(name), "F32") << name;
  return file_->Values<float>(name);
}

std::vector<int32_t> Golden::Ids(const std::string& name) const {
  if (file_->TypeOf(name) == "I64") {
    const auto wide = file_->Values<int64_t>(name);
    return std::vector<int32_t>(wide.begin(), wide.end());
  }
  return file_->Values<int32_t>(name);
}

std::vector<double> Golden::Doubles(const std::string& name) const {
  EXPECT_EQ(file_->TypeOf(name), "F64") << name;
  return file_->Values<double>(name);
}

std::vector<std::byte> Golden::Bytes(const std::string& name) const {
  return file_->Values<std::byte>(name);
}

}  // namespace lockstep::testing
