#include "runtime/text/python_literal.h"

#include <charconv>
#include <cmath>
#include <string>

#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

constexpr int kDeepest = 100;

// Recursive descent; every method leaves `at_` behind what it read and gives nothing on any
// mistake.
class LiteralParser {
 public:
  explicit LiteralParser(std::string_view text) : text_(text) {}

  std::optional<JsonValue> Parse() {
    std::optional<JsonValue> value = Value(0);
    SkipSpace();
    if (at_ != text_.size()) return std::nullopt;
    return value;
  }

 private:
  void SkipSpace() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n\f").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  bool Take(std::string_view token) {
    SkipSpace();
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }
  static bool IsDigit(char c) { return c >= '0' && c <= '9'; }
  static bool IsNameChar(char c) {
    return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (c & 0x80) != 0;
  }
  bool TakeWord(std::string_view word) {
    SkipSpace();
    const std::string_view rest = text_.substr(at_);
    if (!rest.starts_with(word) || (rest.size() > word.size() && IsNameChar(rest[word.size()])))
      return false;
    at_ += word.size();
    return true;
  }

  std::optional<JsonValue> Value(int depth) {
    if (depth > kDeepest) return std::nullopt;
    SkipSpace();
    if (at_ == text_.size()) return std::nullopt;
    if (TakeWord("None")) return JsonValue();
    if (TakeWord("True")) return JsonValue::Bool(true);
    if (TakeWord("False")) return JsonValue::Bool(false);
    const char c = text_[at_];
    if (c == '[') return List(']', depth);
    if (c == '(') return List(')', depth);
    if (c == '{') return Dict(depth);
    if (IsDigit(c) || c == '.' || c == '-' || c == '+') return Number();
    return Strings();
  }

  // A list or a tuple; "(x)" is x itself.
  std::optional<JsonValue> List(char close, int depth) {
    ++at_;
    JsonValue::Array items;
    bool comma = false;
    while (!Take(std::string_view(&close, 1))) {
      if (!items.empty() && !comma) return std::nullopt;
      std::optional<JsonValue> item = Value(depth + 1);
      if (!item) return std::nullopt;
      items.push_back(*std::move(item));
      comma = Take(",");
    }
    if (close == ')' && items.size() == 1 && !comma) return std::move(items[0]);
    return JsonValue::MakeArray(std::move(items));
  }

  std::optional<JsonValue> Dict(int depth) {
    ++at_;
    JsonValue object = JsonValue::MakeObject();
    bool comma = true;
    while (!Take("}")) {
      if (!comma) return std::nullopt;
      const std::optional<JsonValue> key = Value(depth + 1);
      if (!key || key->is_array() || key->is_object() || !Take(":")) return std::nullopt;
      std::optional<JsonValue> value = Value(depth + 1);
      if (!value) return std::nullopt;
      object.Set(key->is_string() ? key->AsString() : key->Dump(), *std::move(value));
      comma = Take(",");
    }
    return object;
  }

  std::optional<JsonValue> Number() {
    bool negative = false;
    while (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) {
      if (text_[at_++] == '-') negative = !negative;
      SkipSpace();
    }
    std::string digits;
    bool real = false;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (IsDigit(c)) {
        digits.push_back(c);
      } else if (c == '.' || c == 'e' || c == 'E') {
        real = true;
        digits.push_back(c);
      } else if ((c == '-' || c == '+') && !digits.empty() &&
                 (digits.back() == 'e' || digits.back() == 'E')) {
        if (c == '-') digits.push_back(c);
      } else if (c == '_' && !digits.empty() && IsDigit(digits.back()) && at_ + 1 < text_.size() &&
                 IsDigit(text_[at_ + 1])) {
        continue;
      } else {
        break;
      }
    }
    if (at_ < text_.size() && IsNameChar(text_[at_])) return std::nullopt;
    if (digits.empty() || (!real && digits.size() > 1 && digits[0] == '0' &&
                           digits.find_first_not_of('0') != std::string::npos)) {
      return std::nullopt;
    }
    if (!real) return JsonValue::BigInt((negative ? "-" : "") + digits);
    double value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc() || result.ptr != digits.data() + digits.size())
      return std::nullopt;
    return JsonValue::Float(negative ? -value : value);
  }

  // One string, or several that Python joins.
  std::optional<JsonValue> Strings() {
    std::string text;
    bool any = false;
    while (true) {
      SkipSpace();
      size_t quote = at_;
      bool raw = false;
      if (quote < text_.size() &&
          std::string_view("rRuU").find(text_[quote]) != std::string_view::npos) {
        raw = text_[quote] == 'r' || text_[quote] == 'R';
        ++quote;
      }
      if (quote >= text_.size() || (text_[quote] != '\'' && text_[quote] != '"')) break;
      at_ = quote;
      if (!QuotedString(raw, &text)) return std::nullopt;
      any = true;
    }
    if (!any) return std::nullopt;
    return JsonValue::String(std::move(text));
  }

  bool QuotedString(bool raw, std::string* out) {
    const char quote = text_[at_];
    const std::string triple(3, quote);
    const bool is_triple = text_.substr(at_).starts_with(triple);
    const std::string_view close =
        is_triple ? std::string_view(triple) : std::string_view(triple).substr(0, 1);
    at_ += close.size();
    while (at_ < text_.size()) {
      if (text_.substr(at_).starts_with(close)) {
        at_ += close.size();
        return true;
      }
      const char c = text_[at_++];
      if (c == '\n' && !is_triple) return false;
      if (c != '\\') {
        out->push_back(c);
        continue;
      }
      if (at_ == text_.size()) return false;
      if (raw) {
        out->push_back(c);
        out->push_back(text_[at_++]);
      } else if (!Escape(out)) {
        return false;
      }
    }
    return false;
  }

  bool Escape(std::string* out) {
    constexpr std::string_view kNames = "\\'\"abfnrtv", kValues = "\\'\"\a\b\f\n\r\t\v";
    const char c = text_[at_++];
    if (c == '\n') return true;
    if (const size_t known = kNames.find(c); known != std::string_view::npos) {
      out->push_back(kValues[known]);
      return true;
    }
    if (c == 'x') return CodePoint(2, 16, out);
    if (c == 'u') return CodePoint(4, 16, out);
    if (c == 'U') return CodePoint(8, 16, out);
    if (c == 'N') return false;
    if (c >= '0' && c <= '7') {
      --at_;
      size_t length = 1;
      while (length < 3 && at_ + length < text_.size() && text_[at_ + length] >= '0' &&
             text_[at_ + length] <= '7') {
        ++length;
      }
      return CodePoint(length, 8, out);
    }
    out->push_back('\\');
    out->push_back(c);
    return true;
  }

  bool CodePoint(size_t length, int base, std::string* out) {
    if (text_.size() - at_ < length) return false;
    uint32_t code = 0;
    const char* begin = text_.data() + at_;
    const auto result = std::from_chars(begin, begin + length, code, base);
    if (result.ec != std::errc() || result.ptr != begin + length) return false;
    at_ += length;
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
    AppendUtf8(code, out);
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::optional<JsonValue> ParsePythonLiteral(std::string_view text) {
  return LiteralParser(text).Parse();
}

}  // namespace lockstep
