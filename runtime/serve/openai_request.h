// From the JSON of OpenAI's API, with the fields of vLLM, llama.cpp and Z.ai, to requests of the
// engine. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/engine/request.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/json_value.h"
#include "runtime/text/model_text.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {

inline constexpr int64_t kMaxChoices = 16;  // answers to one request: `n` times prompts
inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxTools = 512;
inline constexpr size_t kMaxFields = 500;  // of the body's object

// One call of /v1/chat/completions or /v1/completions, checked but for what the engine checks.
struct OpenAiRequest {
  std::vector<Request> requests;  // one per choice, by index: all of the first prompt, ...
  size_t choices_per_prompt = 1;
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage
  int32_t priority = 0;        // as vLLM has it: lower is better
  // Of chats.
  ReplyStart start = ReplyStart::kContent;
  JsonValue tools;  // what types the arguments of calls; null: none
  // What was overlooked or put right, a sentence each: fields that have no meaning here are no
  // errors, since clients send many.
  std::vector<std::string> notes;
};

// `body` must be an object. A RequestError names the field; kFailedPrecondition: the model has no
// chat template that is known. `model` is not looked at.
StatusOr<OpenAiRequest> ParseChatCompletion(const JsonValue& body, const ModelText& text,
                                            int64_t max_model_len);
StatusOr<OpenAiRequest> ParseCompletion(const JsonValue& body, const ModelText& text,
                                        int64_t max_model_len);

// The ids of a prompt; an error of kContextExceeded, without the work, for one of so many bytes
// that it cannot fit.
StatusOr<std::vector<int32_t>> EncodePrompt(std::string_view prompt, const ModelText& text,
                                            int64_t max_model_len);

// The conversation of a chat request (messages, tools, and how to think), for the template. Fields
// that it does not look at are nobody's error.
StatusOr<ChatRequest> ParseConversation(const JsonValue& body);

}  // namespace lockstep
