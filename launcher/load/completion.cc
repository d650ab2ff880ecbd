#include "launcher/load/completion.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "launcher/node_answer.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr int kDeepest = 16;
constexpr size_t kMostValues = 1 << 14;
constexpr int64_t kMostTokens = 16'777'216;
constexpr double kMostQueueMs = 1e12;
constexpr size_t kMostModelsTold = 8;

const json* Find(const json& value, const char* key) {
  if (!value.is_object()) return nullptr;
  const auto found = value.find(key);
  return found == value.end() || found->is_null() ? nullptr : &*found;
}

int64_t CountAt(const json* value, const char* key, int64_t absent) {
  const json* count = value == nullptr ? nullptr : Find(*value, key);
  if (count == nullptr || !count->is_number_unsigned()) return absent;
  const auto said = count->get<uint64_t>();
  return said > static_cast<uint64_t>(kMostTokens) ? absent : static_cast<int64_t>(said);
}

std::string TextAt(const json& value, const char* key) {
  const json* text = Find(value, key);
  return text != nullptr && text->is_string() ? text->get<std::string>() : "";
}

std::string Shortened(std::string_view text) {
  return Printable(text.substr(0, kMostMessageBytes), /*lines=*/false);
}

// OpenAI's shape {"error": {"message": ...}}, and those that vLLM has had: {"message": ...} and
// {"error": "..."}.
std::string MessageIn(const json& value) {
  const json* error = Find(value, "error");
  if (error != nullptr && error->is_string()) return error->get<std::string>();
  const json& holder = error != nullptr ? *error : value;
  std::string message = TextAt(holder, "message");
  return message.empty() ? TextAt(holder, "detail") : message;
}

void ReadChoices(const json& choices, CompletionEvent* event) {
  for (const json& choice : choices) {
    const bool finished = Find(choice, "finish_reason") != nullptr;
    const json* text = Find(choice, "text");
    // Empty, too, where the answer goes on: a token without text of its own.
    if (text != nullptr && text->is_string() && !(finished && TextAt(choice, "text").empty()))
      event->token = true;
    if (finished) event->finished = true;
  }
}

}  // namespace

std::string CompletionBody(const TraceRequest& request, uint64_t number, uint64_t seed,
                           int64_t vocab_size, const std::string& model) {
  json body = {{"model", model},     {"max_tokens", request.output_tokens},
               {"ignore_eos", true}, {"temperature", 0},
               {"stream", true},     {"stream_options", {{"include_usage", true}}}};
  if (!request.user.empty()) body["user"] = request.user;
  std::string text = body.dump(-1, ' ', true, json::error_handler_t::replace);
  text.back() = ',';
  text += "\"prompt\":[";
  for (const int32_t id : PromptOf(request, number, seed, vocab_size))
    absl::StrAppend(&text, id, ",");
  text.back() = ']';
  return text + "}";
}

CompletionEvent ReadCompletionEvent(std::string_view data) {
  CompletionEvent event;
  if (data == "[DONE]") {
    event.done = true;
    return event;
  }
  const json value = ParseBoundedJson(data, kDeepest, kMostValues);
  if (Find(value, "error") != nullptr) {
    event.error = Shortened(MessageIn(value));
    if (event.error.empty()) event.error = "no message";
    return event;
  }
  const json* choices = Find(value, "choices");
  if (choices == nullptr || !choices->is_array()) {
    event.strange = true;
    return event;
  }
  ReadChoices(*choices, &event);
  const json* usage = Find(value, "usage");
  event.prompt_tokens = CountAt(usage, "prompt_tokens", -1);
  event.completion_tokens = CountAt(usage, "completion_tokens", -1);
  const json* details = usage == nullptr ? nullptr : Find(*usage, "prompt_tokens_details");
  event.cached_tokens = CountAt(details, "cached_tokens", -1);
  const json* timings = Find(value, "timings");
  const json* queue = timings == nullptr ? nullptr : Find(*timings, "queue_ms");
  if (queue != nullptr && queue->is_number()) {
    const auto ms = queue->get<double>();
    if (ms >= 0 && ms <= kMostQueueMs) event.queue_s = ms * 1e-3;
  }
  return event;
}

ServerError ReadServerError(std::string_view body) {
  ServerError error;
  const json value = ParseBoundedJson(body, kDeepest, kMostValues);
  if (!value.is_object()) {
    error.message = Shortened(body);
    return error;
  }
  const std::string message = MessageIn(value);
  error.message = Shortened(message.empty() ? body : message);
  const json* inner = Find(value, "error");
  const json& holder = inner != nullptr ? *inner : value;
  // lockstep's and OpenAI's code, llama.cpp's type, vLLM's words.
  error.too_long = TextAt(holder, "code") == "context_length_exceeded" ||
                   TextAt(holder, "type") == "exceed_context_size_error" ||
                   message.find("maximum context length") != std::string::npos;
  return error;
}

StatusOr<ServedFacts> ReadModels(std::string_view body, const std::string& wanted) {
  const json value = ParseBoundedJson(body, kDeepest, kMostValues);
  const json* models = Find(value, "data");
  if (models == nullptr || !models->is_array() || models->empty())
    return UsageError("names no models: '%s'", Shortened(body));
  std::string names;
  size_t told = 0;
  for (const json& model : *models) {
    ServedFacts facts;
    facts.model = TextAt(model, "id");
    if (facts.model.empty()) continue;
    if (!wanted.empty() && facts.model != wanted) {
      if (told++ < kMostModelsTold)
        names += (names.empty() ? "'" : ", '") + Shortened(facts.model) + "'";
      continue;
    }
    // Under llama.cpp's names, too.
    const json* meta = Find(model, "meta");
    facts.max_model_len =
        CountAt(&model, "max_model_len", CountAt(meta, "n_ctx", CountAt(meta, "n_ctx_train", 0)));
    facts.vocab_size = CountAt(&model, "vocab_size", CountAt(meta, "n_vocab", 0));
    return facts;
  }
  if (names.empty()) return UsageError("names no models: '%s'", Shortened(body));
  return UsageError("has no model '%s' but %s%s; give --model one of them", wanted, names,
                    told > kMostModelsTold ? " and more" : "");
}

}  // namespace lockstep
