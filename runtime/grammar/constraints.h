// Grammars over the tokens of a model, by xgrammar (https://github.com/mlc-ai/xgrammar).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/decode/token_constraint.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

// A grammar is a JSON object (reply_grammar.h makes it):
//   start   "content": from the first token on; "thinking": behind </think>, and until then the
//           reply may neither end nor call a tool; "undecided": it begins with <think>
//   tabs    whether text outside of JSON may hold tabs
//   format  what xgrammar calls a structural tag's format
// In it GLM's own tags (<tool_call>, <arg_key>, ...) stand behind kTagMark: they are single tokens,
// and text that only looks like one is none.
inline constexpr char kTagMark = '\r';

// Null where lockstep was built without xgrammar. `end_tokens` end a reply; without any nothing can
// be constrained and it is null too.
std::unique_ptr<TokenConstraints> MakeTokenConstraints(const Tokenizer& tokenizer,
                                                       const std::vector<int32_t>& end_tokens);

}  // namespace lockstep
