// UTF-8, and the few Unicode questions that Python answers for the templates.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lockstep {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Char {
  char32_t code = 0;        // U+FFFD where `valid` is false
  size_t length = 0;        // bytes taken: a character, or a maximal ill-formed run (at least 1)
  bool valid = false;       // a whole character
  bool incomplete = false;  // the text ends within what might become a character
};
// The character at `text[at]`; `at` < text.size().
Utf8Char DecodeUtf8(std::string_view text, size_t at);
void AppendUtf8(char32_t code, std::string* out);
bool IsValidUtf8(std::string_view text);
// `text` with every maximal ill-formed run replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

// Python's str.strip(), lstrip('\n') and rstrip('\n').
std::string_view PythonStrip(std::string_view text);
std::string_view StripLeadingNewlines(std::string_view text);
std::string_view StripTrailingNewlines(std::string_view text);
// Python's str.isprintable() of one character.
bool IsPythonPrintable(char32_t code);

}  // namespace lockstep
