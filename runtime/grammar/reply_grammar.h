// What a reply has to be, as a grammar (constraints.h): pure functions.
#pragma once

#include <string>

#include "runtime/base/status.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/json_value.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {

struct ReplyRules {
  enum class Calls {
    kAuto,      // the model decides; calls of tools marked strict fit their schema
    kRequired,  // calls of one or more tools, and nothing else
    kNamed,     // one call of `tool`
  };
  Calls calls = Calls::kAuto;
  std::string tool;
  bool parallel_calls = true;  // several in one reply
  JsonValue tools;             // as the chat template has them; null: none
  JsonValue schema;            // what the content must fit, if there is content; null: nothing
  std::string schema_name = "response_format";  // in errors
};

// Empty: the reply is free. A RequestError names the schema and what of it cannot be kept.
StatusOr<std::string> MakeReplyGrammar(const ReplyRules& rules, ReplyStart start,
                                       ChatFamily family);
// The same for text that is no chat's: only the schema counts. Empty: there is none.
StatusOr<std::string> MakeTextGrammar(const ReplyRules& rules);

}  // namespace lockstep
