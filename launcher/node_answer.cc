#include "launcher/node_answer.h"

#include <nlohmann/json.hpp>

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLatest = 253'402'300'799;  // the end of the year 9999

// How many bytes the UTF-8 character has that `text` begins with; 0: it begins with none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  const size_t bytes = first < 0x80   ? 1
                       : first < 0xc2 ? 0
                       : first < 0xe0 ? 2
                       : first < 0xf0 ? 3
                       : first < 0xf5 ? 4
                                      : 0;
  if (bytes == 0 || bytes > text.size()) return 0;
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Longer than need be, half of a pair of UTF-16, or behind the last character.
  const bool wrong =
      bytes >= 3 && ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
                     (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f));
  return wrong ? 0 : bytes;
}

StatusOr<int64_t> NumberAt(const Json& json, const char* key, int64_t most) {
  const auto found = json.find(key);
  if (found == json.end()) return 0;
  if (!found->is_number_unsigned() || found->get<uint64_t>() > static_cast<uint64_t>(most))
    return UsageError("its %s cannot be", key);
  return found->get<int64_t>();
}

std::string TextAt(const Json& json, const char* key, bool lines = false) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_string()) return "";
  return Printable(found->get_ref<const std::string&>(), lines);
}

}  // namespace

Json JsonOf(const RankFacts& facts) {
  Json json = {{"state", facts.state}};
  if (facts.pid != 0) json["pid"] = facts.pid;
  if (facts.started_at != 0) json["since"] = facts.started_at;
  for (const auto& [key, text] : {std::pair("serves", &facts.serves),
                                  std::pair("health", &facts.health), std::pair("log", &facts.log)})
    if (!text->empty()) json[key] = *text;
  return json;
}

StatusOr<RankFacts> ParseRankFacts(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  RankFacts facts;
  if (json.is_object()) facts.state = TextAt(json, "state");
  if (facts.state.empty()) return UsageError("no JSON object with a state");
  LOCKSTEP_ASSIGN_OR_RETURN(facts.pid, NumberAt(json, "pid", INT32_MAX));
  LOCKSTEP_ASSIGN_OR_RETURN(facts.started_at, NumberAt(json, "since", kLatest));
  facts.serves = TextAt(json, "serves");
  facts.health = TextAt(json, "health");
  facts.log = TextAt(json, "log", true);
  return facts;
}

std::string Printable(std::string_view text, bool lines) {
  std::string printable;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = CharacterBytes(text.substr(at));
    const auto first = static_cast<unsigned char>(text[at]);
    const auto second = static_cast<unsigned char>(bytes == 2 ? text[at + 1] : 0);
    const bool obeyed = (bytes == 1 && (first < 0x20 || first == 0x7f) &&
                         !(lines && (first == '\n' || first == '\t'))) ||
                        (first == 0xc2 && second < 0xa0);
    const size_t taken = bytes == 0 ? 1 : bytes;
    if (bytes == 0 || obeyed) {
      for (size_t i = at; i < at + taken; ++i)
        printable += absl::StrFormat("\\x%02x", static_cast<unsigned char>(text[i]));
    } else {
      printable += text.substr(at, taken);
    }
    at += taken;
  }
  return printable;
}

}  // namespace lockstep
