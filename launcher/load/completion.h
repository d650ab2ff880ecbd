// What is said to a server with OpenAI's API, and what it answers: lockstep, vLLM, llama.cpp. Pure
// functions; what a server sends is bounded before it is read, and harmless on a terminal after.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "launcher/trace.h"
#include "runtime/base/status.h"

namespace lockstep {

// The body for /v1/completions, streamed, of request `number` of a trace: its prompt is PromptOf's,
// and its answer has exactly its output_tokens.
std::string CompletionBody(const TraceRequest& request, uint64_t number, uint64_t seed,
                           int64_t vocab_size, const std::string& model);

// One event of such an answer.
struct CompletionEvent {
  bool done = false;      // "[DONE]"
  bool strange = false;   // neither that nor an object of a completion
  bool token = false;     // it brings one token or more, with text or without
  bool finished = false;  // it says why the answer ends
  int64_t prompt_tokens = -1, completion_tokens = -1, cached_tokens = -1;  // -1: not said
  double queue_s = -1;                                                     // the same
  std::string error;  // what went wrong on the way; empty: nothing
};
CompletionEvent ReadCompletionEvent(std::string_view data);

// What an answer that is no success says.
struct ServerError {
  std::string message;    // of its first kMostMessageBytes bytes
  bool too_long = false;  // prompt and answer do not fit the context
};
inline constexpr size_t kMostMessageBytes = 200;
ServerError ReadServerError(std::string_view body);

// What a server says of the model that it is asked for. 0: nothing.
struct ServedFacts {
  std::string model;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;
};
// From the answer to GET /v1/models; `wanted` is the model's name, empty: the first. An error says
// which there are.
StatusOr<ServedFacts> ReadModels(std::string_view body, const std::string& wanted);

}  // namespace lockstep
