#include "runtime/text/tokenizer_data.h"

#include "absl/strings/str_format.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

// GPT-2's table: printable Latin-1 bytes spell themselves, the others the characters from U+0100
// on.
struct ByteAlphabet {
  std::array<int, 512> byte_of;
  ByteAlphabet() {
    byte_of.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      byte_of[itself ? byte : next++] = byte;
    }
  }
};

}  // namespace

int ByteOfSpelling(char32_t code) {
  static const ByteAlphabet alphabet;
  return code < alphabet.byte_of.size() ? alphabet.byte_of[code] : -1;
}

std::string TokenizerData::AddToken(int64_t id, const std::string& text) {
  if (id < 0) return absl::StrFormat("the id %d is negative", id);
  if (id >= kMaxTokens)
    return absl::StrFormat("the id %d is absurd (the limit is %d)", id, kMaxTokens);
  if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
  Token& token = tokens[static_cast<size_t>(id)];
  if (token.present) return absl::StrFormat("the id %d is also that of \"%s\"", id, token.text);
  if (!ids.emplace(text, static_cast<int32_t>(id)).second) return "the token stands twice";
  token.present = true;
  token.text = text;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char next = DecodeUtf8(text, at);
    const int byte = ByteOfSpelling(next.code);
    if (byte < 0) {
      token.bytes = text;  // a spelling outside the alphabet stands for itself
      return "";
    }
    token.bytes.push_back(static_cast<char>(byte));
    at += next.length;
  }
  encoder.AddToken(token.bytes, static_cast<int32_t>(id));
  return "";
}

std::string TokenizerData::AddMerge(int64_t rank, const std::array<std::string, 2>& pair) {
  std::array<int32_t, 3> merged{};
  const std::array<std::string, 3> names = {pair[0], pair[1], pair[0] + pair[1]};
  for (size_t i = 0; i < names.size(); ++i) {
    const auto found = ids.find(names[i]);
    if (found == ids.end()) return absl::StrFormat("\"%s\" is not in the vocabulary", names[i]);
    merged[i] = found->second;
  }
  encoder.AddMerge(merged[0], merged[1], {static_cast<int32_t>(rank), merged[2]});
  return "";
}

std::string TokenizerData::MarkAdded(int64_t id, bool special, bool normalized) {
  Token& token = tokens[static_cast<size_t>(id)];
  if (token.added) return absl::StrFormat("\"%s\" is added twice", token.text);
  token.added = true;
  token.special = special;
  (normalized ? normalized_added : verbatim_added).Add(token.text, static_cast<int32_t>(id));
  return "";
}

std::string TokenizerData::CheckBytes() const {
  for (int byte = 0; byte < 256; ++byte) {
    const bool in_utf8 = byte < 0xF5 && byte != 0xC0 && byte != 0xC1;
    if (in_utf8 && encoder.byte_id(static_cast<unsigned char>(byte)) < 0) {
      return absl::StrFormat("the byte 0x%02x has no token, so text with it would be lost", byte);
    }
  }
  return "";
}

}  // namespace lockstep
