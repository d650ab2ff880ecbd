#include "runtime/text/unicode.h"

#include "runtime/base/check.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace lockstep {
namespace {

// Bounds of the second byte after `lead`, and how many bytes the character has; 0 for a byte that
// starts none.
struct LeadByte {
  int length;
  unsigned char lowest, highest;
};

LeadByte ClassifyLead(unsigned char lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

bool IsPythonSpace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

// Start of the character that ends before `end` in valid or invalid UTF-8.
size_t PreviousChar(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && end - start < 4 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) {
    --start;
  }
  return DecodeUtf8(text, start).length == end - start ? start : end - 1;
}

pcre2_code* CompileNotPrintable() {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>("[\\p{C}\\p{Z}]"), PCRE2_ZERO_TERMINATED,
                    PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  LOCKSTEP_CHECK(code != nullptr);
  return code;
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const LeadByte lead = ClassifyLead(byte(at));
  if (lead.length == 1) return {byte(at), 1, true, false};
  if (lead.length == 0) return {0xFFFD, 1, false, false};
  char32_t code = byte(at) & (0xFFu >> (lead.length + 1));
  for (size_t i = 1; i < static_cast<size_t>(lead.length); ++i) {
    if (at + i == text.size()) return {0xFFFD, i, false, true};
    const unsigned char next = byte(at + i);
    const unsigned char lowest = i == 1 ? lead.lowest : 0x80;
    const unsigned char highest = i == 1 ? lead.highest : 0xBF;
    if (next < lowest || next > highest) return {0xFFFD, i, false, false};
    code = (code << 6) | (next & 0x3F);
  }
  return {code, static_cast<size_t>(lead.length), true, false};
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code >> 6)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (code >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Char next = DecodeUtf8(text, at);
    if (!next.valid) return false;
    at += next.length;
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char next = DecodeUtf8(text, at);
    out += next.valid ? text.substr(at, next.length) : kReplacementCharacter;
    at += next.length;
  }
  return out;
}

std::string_view PythonStrip(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char first = DecodeUtf8(text, 0);
    if (!first.valid || !IsPythonSpace(first.code)) break;
    text.remove_prefix(first.length);
  }
  while (!text.empty()) {
    const size_t start = PreviousChar(text, text.size());
    const Utf8Char last = DecodeUtf8(text, start);
    if (!last.valid || !IsPythonSpace(last.code)) break;
    text = text.substr(0, start);
  }
  return text;
}

std::string_view StripLeadingNewlines(std::string_view text) {
  const size_t first = text.find_first_not_of('\n');
  return first == std::string_view::npos ? std::string_view() : text.substr(first);
}

std::string_view StripTrailingNewlines(std::string_view text) {
  const size_t last = text.find_last_not_of('\n');
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last + 1);
}

bool IsPythonPrintable(char32_t code) {
  if (code == ' ') return true;
  if (code < 0x7F) return code > 0x20;
  // Categories C* and Z* are what repr() escapes; PCRE2 has the tables already.
  static const pcre2_code* const not_printable = CompileNotPrintable();
  std::string text;
  AppendUtf8(code, &text);
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  const int result = pcre2_match(not_printable, reinterpret_cast<PCRE2_SPTR>(text.data()),
                                 text.size(), 0, 0, match, nullptr);
  pcre2_match_data_free(match);
  return result < 0;
}

}  // namespace lockstep
