// What ranks tell each other over the control channel before there is a communicator.
#include <charconv>
#include <string>

#include "absl/strings/str_split.h"
#include "collectives/nccl/nccl_group.h"

namespace lockstep::nccl {
namespace {

constexpr const char* kWord = "nccl";
constexpr const char* kNoId = "-";

struct Hello {
  int version = 0;
  std::string id;
};

bool Number(const std::string& text, int base, int* value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, *value, base);
  return error == std::errc() && rest == end;
}

bool Parse(const std::string& text, Hello* hello) {
  const std::vector<std::string> words = absl::StrSplit(text, ' ');
  if (words.size() != 3 || words[0] != kWord) return false;
  hello->id = words[2];
  return Number(words[1], 10, &hello->version) && hello->version > 0;
}

bool ParseId(const std::string& text, ncclUniqueId* id) {
  if (text.size() != 2 * sizeof(id->internal)) return false;
  for (size_t i = 0; i < sizeof(id->internal); ++i) {
    int value = 0;
    // A sign, which from_chars takes, is no digit.
    if (text[2 * i] == '-' || !Number(text.substr(2 * i, 2), 16, &value)) return false;
    id->internal[i] = static_cast<char>(value);
  }
  return true;
}

}  // namespace

std::string EncodeHello(int version, const ncclUniqueId* id) {
  std::string text = absl::StrFormat("%s %d ", kWord, version);
  if (id == nullptr) return text + kNoId;
  for (const char byte : id->internal) {
    text += absl::StrFormat("%02x", static_cast<unsigned char>(byte));
  }
  return text;
}

StatusOr<ncclUniqueId> DecodeHellos(std::span<const std::string> texts,
                                    std::span<const std::string> names) {
  Hello first, other;
  ncclUniqueId id{};
  if (texts.empty() || !Parse(texts[0], &first) || !ParseId(first.id, &id)) {
    return PeerLostError("%s sent no id of an NCCL communicator", names[0]);
  }
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    if (!Parse(texts[rank], &other) || other.id != kNoId) {
      return PeerLostError("%s did not say which NCCL it has", names[rank]);
    }
    if (other.version != first.version) {
      return UsageError(
          "%s has NCCL %s and %s has %s: install the same version on all machines, or use "
          "--collective tcp",
          names[0], VersionText(first.version), names[rank], VersionText(other.version));
    }
  }
  return id;
}

}  // namespace lockstep::nccl
