// Who may use the server: keys from a file that holds their SHA-256 only.
//
//     # one key a line: a name for logs, and what `printf %s KEY | sha256sum` prints
//     alice  9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//
// The file is read again when it changes, so keys come and go without a restart; one that cannot be
// read or understood then leaves the keys as they were, and is logged.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

class ApiKeys {
 public:
  // A UsageError names file and line.
  static StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // The name of the key; empty if there is no such key. Takes the same time for every key that is
  // not there. Any thread.
  std::string NameOf(std::string_view key) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  struct Entry {
    std::string name;
    Digest digest;
  };
  static Digest DigestOf(std::string_view key);
  explicit ApiKeys(std::string path) : path_(std::move(path)) {}
  static StatusOr<std::vector<Entry>> Parse(const std::string& path, std::string_view text);
  // Reads the file again if the last time is a second ago.
  void RefreshLocked() const;

  const std::string path_;
  mutable std::mutex mutex_;
  mutable std::string text_;  // of the file, as it was last taken
  mutable std::string told_;  // what is wrong with it since
  mutable std::vector<Entry> entries_;
  mutable int64_t next_look_ns_ = 0;
};

// The key in "Authorization: Bearer KEY" or "x-api-key: KEY"; empty if there is none.
std::string_view KeyOf(std::string_view authorization, std::string_view x_api_key);

}  // namespace lockstep
