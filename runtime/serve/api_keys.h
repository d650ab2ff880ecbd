// Who may use the server, and how much of it: keys from a file that holds their SHA-256 only.
//
// One key a line: a name, what `printf %s KEY | sha256sum` prints, and limits if there are any.
//
// clang-format off
//     alice  9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//     bob    d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa  requests=4
// clang-format on
//
// The file is read again when it changes, so keys and limits come and go without a restart; one
// that cannot be read or understood then leaves them as they were, and is logged.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// What a client may have; a name is a client, whatever key it shows.
struct ClientLimits {
  int64_t requests = 0;           // at once; 0: any number
  int64_t tokens_per_minute = 0;  // of prompts and answers; 0: any number
  double weight = 1;              // of its share, against other clients
  int32_t priority = 0;           // of its requests, and the best that they may ask for

  bool operator==(const ClientLimits&) const = default;
};

struct Client {
  std::string name;
  ClientLimits limits;
};

class ApiKeys {
 public:
  // A UsageError names file and line.
  static StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // Whose key it is; nothing if there is no such key. Takes the same time for every key that is not
  // there. Any thread.
  std::optional<Client> Find(std::string_view key) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  struct Entry {
    Client client;
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
