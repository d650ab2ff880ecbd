// Between the messages of lockstep.v1 and the engine's own types. Pure functions.
#pragma once

#include <string>

#include "lockstep/v1/inference.pb.h"
#include "runtime/base/status.h"
#include "runtime/engine/request.h"
#include "runtime/grammar/reply_grammar.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/model_text.h"

namespace lockstep {

// Sampling and stopping of a request, with the model's defaults; ranges are the engine's to check,
// but a field that does not fit at all is a RequestError here.
Status FillRequest(const v1::SamplingOptions& sampling, const v1::StopOptions& stop,
                   const ModelText& text, Request* request);

// The conversation for the chat template. A RequestError names the message or tool that is at
// fault.
StatusOr<ChatRequest> ToChatRequest(const v1::ChatRequest& chat);

// What the reply must be, beside its tools.
Status FillRules(const v1::ChatRequest& chat, ReplyRules* rules);
Status FillSchema(const std::string& schema, ReplyRules* rules);

v1::FinishReason ToProto(FinishReason reason, bool tool_calls);
void ToProto(const Summary& summary, v1::Usage* usage, v1::Timings* timings);
void ToProto(const SampledToken& token, v1::TokenLogprobs* logprobs);

}  // namespace lockstep
