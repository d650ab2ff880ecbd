// What /tokenize, /detokenize and /apply-template answer: a model's text without the model. Fields
// of vLLM and of llama.cpp. Errors are of kind kRequest and name the field.
#pragma once

#include "runtime/base/status.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/served_model.h"
#include "runtime/text/json_value.h"
#include "runtime/text/model_text.h"

namespace lockstep {

// The ids of {"prompt"}, {"content"} or a conversation, {"messages"}.
StatusOr<Json> TokensOf(const ModelText& text, const ServedModel& model, const JsonValue& body);
// The text of {"tokens"}.
StatusOr<Json> TextOf(const ModelText& text, const ServedModel& model, const JsonValue& body);
// The prompt of a conversation.
StatusOr<Json> RenderedOf(const ModelText& text, const JsonValue& body);

}  // namespace lockstep
