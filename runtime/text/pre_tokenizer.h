// Cuts text into the pieces within which bytes are merged: the Split steps of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// Immutable once its steps are added; Split may be called from any thread.
class PreTokenizer {
 public:
  PreTokenizer();
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  // A step that isolates every match of a regular expression (as Oniguruma, which Hugging Face
  // uses, reads it, for the syntax that PCRE2 shares with it); a ModelError if it does not compile.
  Status AddRegex(const std::string& pattern);
  // A step that isolates every occurrence of a literal text.
  void AddLiteral(std::string literal);

  // The pieces of `text` (valid UTF-8), in order, none empty; views into `text`. Joined they are
  // the text.
  std::vector<std::string_view> Split(std::string_view text) const;

 private:
  struct Step;
  std::vector<Step> steps_;
};

// `text` with every character that Unicode 16 (which Hugging Face tokenizers knows) and the
// installed PCRE2 may class differently as space, letter or number replaced by one of the same
// class and length. Returns false, and leaves `shadow` alone, where there is none.
bool MakeRegexShadow(std::string_view text, std::string* shadow);

}  // namespace lockstep
