// From the JSON of OpenAI's Responses API to that of its chats, which knows the rest. Pure
// functions.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/text/json_value.h"

namespace lockstep {

// `body` must be an object. Nothing is stored between requests: what refers to an earlier response
// is refused. A RequestError names the field. `notes` as OpenAiRequest has them.
StatusOr<JsonValue> ChatFromResponses(const JsonValue& body, std::vector<std::string>* notes);

}  // namespace lockstep
