// From the JSON of Anthropic's Messages API to that of OpenAI's chats, which knows the rest. Pure
// functions.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/text/json_value.h"

namespace lockstep {

// `body` must be an object. System blocks that begin with "x-anthropic-" are left out: they are no
// part of the prompt and differ in every request. Thinking that was given back is passed on as it
// came. A RequestError names the field. `notes` as OpenAiRequest has them.
StatusOr<JsonValue> ChatFromMessages(const JsonValue& body, std::vector<std::string>* notes);

}  // namespace lockstep
