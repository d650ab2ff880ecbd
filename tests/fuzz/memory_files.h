// Files in memory that the readers of files take for those of a directory (MountedFiles): a fuzzer
// writes none for each input.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/file.h"

namespace lockstep {

class MemoryFiles final : public FileSource {
 public:
  // `text` must outlive this; behind it stand so many bytes of 0.
  void Add(const std::string& name, std::string_view text, uint64_t zeros = 0) {
    files_[name] = {text, text.size() + zeros};
  }

  StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& name) const override {
    const auto found = files_.find(name);
    if (found == files_.end()) return ModelError("%s: no such file", name);
    return std::make_unique<File>(name, found->second);
  }
  bool Exists(const std::string& name) const override { return files_.contains(name); }
  std::vector<std::string> List() const override {
    std::vector<std::string> names;
    for (const auto& [name, contents] : files_) names.push_back(name);
    return names;
  }

 private:
  struct Contents {
    std::string_view text;
    uint64_t bytes = 0;
  };

  class File final : public RandomAccessFile {
   public:
    File(const std::string& name, const Contents& contents)
        : RandomAccessFile(name, contents.bytes), text_(contents.text) {}
    Status Read(uint64_t offset, std::span<std::byte> out) const override {
      if (offset > size_bytes() || out.size() > size_bytes() - offset)
        return ModelError("%s: ends before byte %d", path(), offset + out.size());
      const std::string_view rest = text_.substr(std::min<uint64_t>(offset, text_.size()));
      const size_t there = std::min(rest.size(), out.size());
      if (there > 0) std::memcpy(out.data(), rest.data(), there);
      std::fill(out.begin() + static_cast<std::ptrdiff_t>(there), out.end(), std::byte{0});
      return OkStatus();
    }

   private:
    const std::string_view text_;
  };

  std::map<std::string, Contents> files_;
};

}  // namespace lockstep
