#include "runtime/serve/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/lines.h"
#include "runtime/base/log.h"
#include "runtime/engine/request.h"

namespace lockstep {
namespace {

constexpr int64_t kLookNs = 1'000'000'000;
constexpr uint64_t kMostBytes = 1 << 20;
constexpr std::string_view kSpace = " \t\r";

// The next word of `line`, which loses it; empty at the end.
std::string_view TakeWord(std::string_view* line) {
  const size_t begin = std::min(line->find_first_not_of(kSpace), line->size());
  const size_t end = std::min(line->find_first_of(kSpace, begin), line->size());
  const std::string_view word = line->substr(begin, end - begin);
  line->remove_prefix(end);
  return word;
}

std::optional<unsigned char> HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

bool FromHex(std::string_view hex, std::array<unsigned char, 32>* digest) {
  if (hex.size() != 2 * digest->size()) return false;
  for (size_t i = 0; i < digest->size(); ++i) {
    const auto high = HexDigit(hex[2 * i]), low = HexDigit(hex[2 * i + 1]);
    if (!high || !low) return false;
    (*digest)[i] = static_cast<unsigned char>(*high << 4 | *low);
  }
  return true;
}

template <typename Number>
bool ReadNumber(std::string_view text, Number lowest, Number highest, Number* out) {
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, *out);
  return read.ec == std::errc() && read.ptr == end && *out >= lowest && *out <= highest;
}

// One "name=value" of a line; false if it is none.
bool ReadLimit(std::string_view word, ClientLimits* limits) {
  const size_t split = std::min(word.find('='), word.size());
  const std::string_view name = word.substr(0, split);
  const std::string_view value = word.substr(std::min(split + 1, word.size()));
  constexpr int64_t kMost = 1'000'000'000'000;
  if (name == "requests") return ReadNumber<int64_t>(value, 1, kMost, &limits->requests);
  if (name == "tokens-per-minute")
    return ReadNumber<int64_t>(value, 1, kMost, &limits->tokens_per_minute);
  if (name == "weight")
    return ReadNumber<double>(value, kLeastWeight, kMostWeight, &limits->weight);
  return name == "priority" && ReadNumber<int32_t>(value, -1000, 1000, &limits->priority);
}

}  // namespace

ApiKeys::Digest ApiKeys::DigestOf(std::string_view key) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

StatusOr<std::vector<ApiKeys::Entry>> ApiKeys::Parse(const std::string& path,
                                                     std::string_view text) {
  std::vector<Entry> entries;
  Lines lines(text);
  for (std::string_view line; lines.Next(&line);) {
    const int64_t number = lines.number();
    line = line.substr(0, line.find('#'));
    Entry entry;
    Client& client = entry.client;
    client.name = TakeWord(&line);
    if (client.name.empty()) continue;
    if (!FromHex(TakeWord(&line), &entry.digest)) {
      return UsageError(
          "%s:%d: a line is a name and the SHA-256 of a key, 64 hexadecimal digits: `printf %%s "
          "\"$KEY\" | sha256sum`",
          path, number);
    }
    std::string_view word = TakeWord(&line);
    if (word == "-") word = TakeWord(&line);  // as sha256sum calls what it has read
    for (; !word.empty(); word = TakeWord(&line)) {
      if (ReadLimit(word, &client.limits)) continue;
      return UsageError(
          "%s:%d: '%s' is no limit; there are requests=1.., tokens-per-minute=1.., "
          "weight=0.001..1000 and priority=-1000..1000",
          path, number, word);
    }
    if (entry.digest == DigestOf("")) {
      return UsageError("%s:%d: this is the digest of nothing: the key was empty when it was made",
                        path, number);
    }
    for (const Entry& other : entries) {
      if (other.client.name == client.name && other.client.limits != client.limits) {
        return UsageError("%s:%d: '%s' has other limits above; all keys of a name share the same",
                          path, number, client.name);
      }
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) return UsageError("%s: holds no key", path);
  return entries;
}

StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path) {
  std::unique_ptr<ApiKeys> keys(new ApiKeys(path));
  LOCKSTEP_ASSIGN_OR_RETURN(keys->text_, ReadTextFile(path, kMostBytes));
  LOCKSTEP_ASSIGN_OR_RETURN(keys->entries_, Parse(path, keys->text_));
  keys->next_look_ns_ = NowNs() + kLookNs;
  return StatusOr<std::unique_ptr<ApiKeys>>(std::move(keys));
}

void ApiKeys::RefreshLocked() const {
  const int64_t now_ns = NowNs();
  if (now_ns < next_look_ns_) return;
  next_look_ns_ = now_ns + kLookNs;
  StatusOr<std::string> text = ReadTextFile(path_, kMostBytes);
  if (text.ok() && *text == text_) return told_.clear();
  StatusOr<std::vector<Entry>> entries = text.ok() ? Parse(path_, *text) : text.status();
  if (!entries.ok()) {
    // Told once, not every second.
    if (std::string what = MessageOf(entries.status()); what != told_) {
      log::Warning("API keys stay as they are: %s", what);
      told_ = std::move(what);
    }
    return;
  }
  told_.clear();
  log::Info("%s: %d API keys", path_, entries->size());
  text_ = *std::move(text);
  entries_ = *std::move(entries);
}

std::optional<Client> ApiKeys::Find(std::string_view key) const {
  const Digest digest = DigestOf(key);
  const std::lock_guard lock(mutex_);
  RefreshLocked();
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) found = &entry;
  }
  if (found == nullptr) return std::nullopt;
  return found->client;
}

std::string_view KeyOf(std::string_view authorization, std::string_view x_api_key) {
  constexpr std::string_view kScheme = "bearer ";
  const bool bearer =
      authorization.size() > kScheme.size() &&
      std::equal(kScheme.begin(), kScheme.end(), authorization.begin(),
                 [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b - 'A' + 'a' : b); });
  return bearer ? authorization.substr(kScheme.size()) : x_api_key;
}

}  // namespace lockstep
