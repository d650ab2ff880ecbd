// What a Tokenizer holds; for tokenizer.cc and the loaders (tokenizer_load.cc, tokenizer_gguf.cc)
// only.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/pre_tokenizer.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

struct TokenizerData {
  struct Token {
    std::string text;   // as spelled in tokenizer.json
    std::string bytes;  // what it stands for
    bool present = false;
    bool added = false;
    bool special = false;
  };
  std::vector<Token> tokens;  // by id
  StringMap<int32_t> ids;     // by spelling
  BytePairEncoder encoder;
  PreTokenizer pre_tokenizer;
  // Added tokens with normalized false are found first, the others in the text between them.
  AddedTokenTrie verbatim_added;
  AddedTokenTrie normalized_added;

  // The steps of loading. Each returns what is wrong, or nothing.
  std::string AddToken(int64_t id, const std::string& text);
  // Both tokens and what they make together must have been added.
  std::string AddMerge(int64_t rank, const std::array<std::string, 2>& pair);
  // The token, added before, is found anywhere in text.
  std::string MarkAdded(int64_t id, bool special, bool normalized);
  // Every byte that valid UTF-8 can hold needs a token, or text would be lost.
  std::string CheckBytes() const;

  const Token* Find(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens.size() && tokens[id].present ? &tokens[id]
                                                                                    : nullptr;
  }
};

// Far above any vocabulary that exists; keeps a wrong id from asking for memory.
inline constexpr int64_t kMaxTokens = 2'000'000;
inline constexpr size_t kMaxMerges = 16'000'000;
inline constexpr size_t kMaxAddedTokenBytes = 1024;

// The byte that a character stands for in byte-level spelling; -1 where it stands for none.
int ByteOfSpelling(char32_t code);

}  // namespace lockstep
