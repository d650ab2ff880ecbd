// Writes GGUF files, sound ones and broken ones, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/gguf.h"

namespace lockstep::testing {

template <typename T>
std::string RawBytes(T value) {
  static_assert(std::is_arithmetic_v<T>);
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    uint32_t type = 0;
    std::string data;
    int64_t offset = -1;  // as the file shall say it; -1: the right one
  };

  static std::string Text(const std::string& text) {
    return RawBytes<uint64_t>(text.size()) + text;
  }

  // A value as the file has it: its kind and its bytes.
  GgufBuilder& SetRaw(const std::string& key, uint32_t kind, const std::string& bytes) {
    Erase(key);
    return AppendRaw(key, kind, bytes);
  }
  // Also where the key is there already.
  GgufBuilder& AppendRaw(const std::string& key, uint32_t kind, const std::string& bytes) {
    metadata.emplace_back(key, RawBytes(kind) + bytes);
    return *this;
  }
  GgufBuilder& Erase(const std::string& key) {
    std::erase_if(metadata, [&](const auto& entry) { return entry.first == key; });
    return *this;
  }
  GgufBuilder& SetInteger(const std::string& key, int64_t value) {
    return SetRaw(key, 11, RawBytes(value));
  }
  GgufBuilder& SetText(const std::string& key, const std::string& value) {
    return SetRaw(key, 8, Text(value));
  }
  GgufBuilder& Set(const std::string& key, const GgufValue& value) {
    return std::visit([&](const auto& held) -> GgufBuilder& { return SetValue(key, held); }, value);
  }
  Tensor& AddTensor(const std::string& name, const std::vector<int64_t>& shape, uint32_t type,
                    const std::string& data) {
    return tensors.emplace_back(Tensor{name, shape, type, data, -1});
  }
  Tensor& Find(const std::string& name) {
    for (Tensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << "no tensor " << name;
    return tensors.front();
  }

  // Magic, counts, metadata and the list of tensors.
  std::string Header() const {
    std::string bytes = "GGUF" + RawBytes(version) + RawBytes<uint64_t>(tensors.size()) +
                        RawBytes<uint64_t>(metadata.size());
    for (const auto& [key, value] : metadata) bytes += Text(key) + value;
    uint64_t offset = 0;
    for (const Tensor& tensor : tensors) {
      bytes += Text(tensor.name) + RawBytes(static_cast<uint32_t>(tensor.shape.size()));
      for (const int64_t size : tensor.shape) bytes += RawBytes(size);
      bytes += RawBytes(tensor.type) +
               RawBytes(tensor.offset >= 0 ? static_cast<uint64_t>(tensor.offset) : offset);
      offset = Aligned(offset + tensor.data.size());
    }
    return bytes;
  }
  std::string Build() const {
    std::string bytes = Header();
    for (const Tensor& tensor : tensors) {
      bytes.resize(Aligned(bytes.size()));
      bytes += tensor.data;
    }
    if (tensors.empty()) bytes.resize(Aligned(bytes.size()));
    return bytes;
  }

  uint32_t version = 3;
  uint64_t alignment = 32;  // where data is put; general.alignment is set apart
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<Tensor> tensors;

 private:
  uint64_t Aligned(uint64_t at) const { return (at + alignment - 1) / alignment * alignment; }
  GgufBuilder& SetValue(const std::string& key, int64_t value) { return SetInteger(key, value); }
  GgufBuilder& SetValue(const std::string& key, double value) {
    return SetRaw(key, 12, RawBytes(value));
  }
  GgufBuilder& SetValue(const std::string& key, bool value) {
    return SetRaw(key, 7, RawBytes(static_cast<uint8_t>(value)));
  }
  GgufBuilder& SetValue(const std::string& key, const std::string& value) {
    return SetText(key, value);
  }
  template <typename T>
  GgufBuilder& SetValue(const std::string& key, const std::vector<T>& values) {
    constexpr uint32_t kKind = std::is_same_v<T, bool>      ? 7
                               : std::is_same_v<T, int64_t> ? 11
                               : std::is_same_v<T, double>  ? 12
                                                            : 8;
    std::string bytes = RawBytes(kKind) + RawBytes<uint64_t>(values.size());
    for (const T& value : values) {
      if constexpr (std::is_same_v<T, std::string>) {
        bytes += Text(value);
      } else {
        bytes += RawBytes(value);
      }
    }
    return SetRaw(key, 9, bytes);
  }
};

// A copy of a model, to be changed. Integers and numbers become 64 bits wide.
inline GgufBuilder CopyGguf(const std::string& path) {
  GgufBuilder builder;
  const auto gguf = OpenGgufFiles(path);
  EXPECT_TRUE(gguf.ok()) << gguf.status();
  if (!gguf.ok()) return builder;
  for (const auto& [key, value] : gguf->metadata) builder.Set(key, value);
  for (const auto& [name, tensor] : gguf->tensors) {
    std::string data(tensor.bytes, '\0');
    const auto& file = *gguf->files[static_cast<size_t>(tensor.part)];
    EXPECT_TRUE(file.Read(tensor.offset, std::as_writable_bytes(std::span(data))).ok());
    builder.AddTensor(name, tensor.shape, tensor.type, data);
  }
  return builder;
}

// The parts of a model, as llama-gguf-split writes them: all metadata in the first.
inline std::vector<GgufBuilder> SplitGguf(const GgufBuilder& whole, size_t parts) {
  std::vector<GgufBuilder> split(parts);
  split[0].metadata = whole.metadata;
  for (size_t i = 0; i < parts; ++i) {
    split[i].SetRaw("split.no", 2, RawBytes(static_cast<uint16_t>(i)));
    split[i].SetRaw("split.count", 2, RawBytes(static_cast<uint16_t>(parts)));
    split[i].SetRaw("split.tensors.count", 5, RawBytes(static_cast<int32_t>(whole.tensors.size())));
    const size_t begin = whole.tensors.size() * i / parts;
    const size_t end = whole.tensors.size() * (i + 1) / parts;
    for (size_t t = begin; t < end; ++t) split[i].tensors.push_back(whole.tensors[t]);
  }
  return split;
}

}  // namespace lockstep::testing
