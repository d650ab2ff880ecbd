// What a Tokenizer holds; for tokenizer.cc and tokenizer_load.cc only.
#pragma once

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

  const Token* Find(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens.size() && tokens[id].present ? &tokens[id]
                                                                                    : nullptr;
  }
};

// The byte that a character stands for in byte-level spelling; -1 where it stands for none.
int ByteOfSpelling(char32_t code);

}  // namespace lockstep
