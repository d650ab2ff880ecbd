// GGUF metadata as the text of a file without tensors.
#include <cstring>

#include "runtime/base/gguf.h"

namespace lockstep {
namespace {

// The numbers of ggml's types of values.
enum ValueType : uint32_t { kBool = 7, kString = 8, kArray = 9, kInt64 = 11, kFloat64 = 12 };

class Writer {
 public:
  template <typename T>
  void Put(T value) {
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    text.append(bytes, sizeof value);
  }
  void Put(const std::string& value) {
    Put(static_cast<uint64_t>(value.size()));
    text += value;
  }
  void Put(bool value) { text += value ? '\1' : '\0'; }

  template <typename T>
  void Value(uint32_t type, const T& value) {
    Put(type);
    Put(value);
  }
  template <typename T>
  void Values(uint32_t type, const std::vector<T>& values) {
    Put(uint32_t{kArray});
    Put(type);
    Put(static_cast<uint64_t>(values.size()));
    for (const T& value : values) Put(value);
  }

  void operator()(int64_t value) { Value(kInt64, value); }
  void operator()(double value) { Value(kFloat64, value); }
  void operator()(bool value) { Value(kBool, value); }
  void operator()(const std::string& value) { Value(kString, value); }
  void operator()(const std::vector<int64_t>& values) { Values(kInt64, values); }
  void operator()(const std::vector<double>& values) { Values(kFloat64, values); }
  void operator()(const std::vector<bool>& values) {
    Put(uint32_t{kArray});
    Put(uint32_t{kBool});
    Put(static_cast<uint64_t>(values.size()));
    for (const bool value : values) Put(value);
  }
  void operator()(const std::vector<std::string>& values) { Values(kString, values); }

  std::string text;
};

}  // namespace

std::string GgufMetadataText(const std::map<std::string, GgufValue>& metadata) {
  Writer writer;
  writer.text = "GGUF";
  writer.Put(uint32_t{3});
  writer.Put(uint64_t{0});  // tensors
  uint64_t keys = 0;
  for (const auto& [key, value] : metadata) keys += key.starts_with("split.") ? 0 : 1;
  writer.Put(keys);
  for (const auto& [key, value] : metadata) {
    if (key.starts_with("split.")) continue;
    writer.Put(key);
    std::visit([&writer](const auto& any) { writer(any); }, value);
  }
  return writer.text;
}

}  // namespace lockstep
