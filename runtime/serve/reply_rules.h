// What a client demands of the reply's form. Pure functions.
#pragma once

#include "runtime/base/status.h"
#include "runtime/grammar/reply_grammar.h"
#include "runtime/serve/json_fields.h"

namespace lockstep {

// response_format (OpenAI's, flat as /v1/responses has it, and llama.cpp's with a schema), and
// vLLM's guided_json and structured_outputs.json. Leaves the schema null where there is none.
Status ReadSchema(JsonFields& fields, ReplyRules* rules);
// The same with tool_choice and parallel_tool_calls.
Status ReadReplyRules(JsonFields& fields, ReplyRules* rules);

// Whether tool_choice says that no tool may be called: then the model is not told of any.
StatusOr<bool> ToolsAreOff(JsonFields& fields);

}  // namespace lockstep
