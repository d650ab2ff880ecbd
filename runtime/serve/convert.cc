#include "runtime/serve/convert.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "runtime/engine/defaults.h"
#include "runtime/text/json_value.h"

namespace lockstep {
namespace {

StatusOr<JsonValue> ToJson(const v1::Message& message, int index) {
  static constexpr const char* kRoles[] = {"system", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role()) == std::end(kRoles)) {
    return RequestError(
        "messages[%d].role is '%s', but must be one of system, user, assistant, tool", index,
        message.role());
  }
  if (message.role() != "assistant" &&
      (!message.tool_calls().empty() || !message.reasoning_content().empty())) {
    return RequestError(
        "messages[%d] has role %s, but only an assistant has tool_calls and reasoning_content",
        index, message.role());
  }
  JsonValue json = JsonValue::MakeObject();
  json.Set("role", JsonValue::String(message.role()));
  json.Set("content", JsonValue::String(message.content()));
  if (!message.reasoning_content().empty()) {
    json.Set("reasoning_content", JsonValue::String(message.reasoning_content()));
  }
  if (!message.tool_call_id().empty())
    json.Set("tool_call_id", JsonValue::String(message.tool_call_id()));
  JsonValue calls = JsonValue::MakeArray();
  for (const v1::ToolCall& call : message.tool_calls()) {
    JsonValue function = JsonValue::MakeObject();
    function.Set("name", JsonValue::String(call.name()));
    function.Set("arguments",
                 JsonValue::String(call.arguments().empty() ? "{}" : call.arguments()));
    JsonValue entry = JsonValue::MakeObject();
    if (!call.id().empty()) entry.Set("id", JsonValue::String(call.id()));
    entry.Set("type", JsonValue::String("function"));
    entry.Set("function", std::move(function));
    calls.AsArray().push_back(std::move(entry));
  }
  if (!calls.AsArray().empty()) json.Set("tool_calls", std::move(calls));
  return json;
}

// The engine checks this too, with the model's vocabulary; who only counts tokens hears it here.
Status CheckBounds(const Request& request) {
  LOCKSTEP_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, INT64_MAX));
  StopParams stop = request.stop;
  if (stop.max_tokens == 0) stop.max_tokens = 1;  // as much as fits
  return ValidateStopParams(stop, INT64_MAX);
}

double Rate(double tokens, double seconds) {
  return seconds > 0 && tokens > 0 ? tokens / seconds : 0;
}

}  // namespace

Status FillRequest(const v1::SamplingOptions& sampling, const v1::StopOptions& stop,
                   const ModelText& text, Request* request) {
  SamplingParams& params = request->sampling;
  params = DefaultSampling(text.generation);
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  if (sampling.has_top_k()) params.top_k = sampling.top_k();
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  if (sampling.has_presence_penalty()) params.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) params.frequency_penalty = sampling.frequency_penalty();
  for (const auto& [id, bias] : sampling.logit_bias()) params.logit_bias.emplace_back(id, bias);
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  params.seed = sampling.has_seed() ? sampling.seed() : FreshSeed();
  if (sampling.has_logprobs()) {
    if (sampling.logprobs() < 0)
      return RequestError("logprobs is %d, but must lie in 0 .. 20", sampling.logprobs());
    params.logprobs = sampling.logprobs();
  }
  if (sampling.has_thinking_budget() && sampling.thinking_budget() != -1) {
    const std::optional<int32_t> begin = text.tokenizer->IdOf("<think>");
    const std::optional<int32_t> end = text.tokenizer->IdOf("</think>");
    if (!begin.has_value() || !end.has_value()) {
      return RequestError(
          "thinking_budget: the model's tokenizer has no <think> and </think>; leave it out");
    }
    params.thinking = {sampling.thinking_budget(), *begin, *end};
  }
  if (stop.has_max_tokens() && stop.max_tokens() < 1) {
    return RequestError("max_tokens is %d, but must be at least 1", stop.max_tokens());
  }
  request->stop.max_tokens = stop.has_max_tokens() ? stop.max_tokens() : 0;
  request->stop.texts.assign(stop.texts().begin(), stop.texts().end());
  request->stop.token_ids.assign(stop.token_ids().begin(), stop.token_ids().end());
  if (!stop.ignore_eos()) {
    request->stop.token_ids.insert(request->stop.token_ids.end(), text.stop_token_ids.begin(),
                                   text.stop_token_ids.end());
  }
  return CheckBounds(*request);
}

StatusOr<ChatRequest> ToChatRequest(const v1::ChatRequest& chat) {
  ChatRequest request;
  request.form = ChatRequest::Form::kOpenAi;
  if (chat.messages().empty()) return RequestError("messages is empty");
  for (int i = 0; i < chat.messages_size(); ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(JsonValue message, ToJson(chat.messages(i), i));
    request.messages.AsArray().push_back(std::move(message));
  }
  const bool tools = !chat.tools().empty() && chat.tool_choice() != "none";
  if (tools) request.tools = JsonValue::MakeArray();
  for (int i = 0; tools && i < chat.tools_size(); ++i) {
    StatusOr<JsonValue> tool = ParseJson(chat.tools(i), kStrangersJson);
    if (!tool.ok()) return RequestError("tools[%d] is not JSON: %s", i, MessageOf(tool.status()));
    if (!tool->is_object())
      return RequestError("tools[%d] is %s, but must be an object", i, tool->KindName());
    request.tools.AsArray().push_back(std::move(*tool));
  }
  if (chat.has_enable_thinking()) request.enable_thinking = chat.enable_thinking();
  if (chat.has_clear_thinking()) request.clear_thinking = chat.clear_thinking();
  return request;
}

Status FillSchema(const std::string& schema, ReplyRules* rules) {
  if (schema.empty()) return OkStatus();
  StatusOr<JsonValue> parsed = ParseJson(schema, kStrangersJson);
  if (!parsed.ok())
    return RequestError("response_schema is not JSON: %s", MessageOf(parsed.status()));
  if (parsed->is_null()) return RequestError("response_schema is null, but must be a schema");
  rules->schema = *std::move(parsed);
  rules->schema_name = "response_schema";
  return OkStatus();
}

Status FillRules(const v1::ChatRequest& chat, ReplyRules* rules) {
  LOCKSTEP_RETURN_IF_ERROR(FillSchema(chat.response_schema(), rules));
  const std::string& choice = chat.tool_choice();
  if (choice == "required") {
    rules->calls = ReplyRules::Calls::kRequired;
  } else if (choice == "tool") {
    rules->calls = ReplyRules::Calls::kNamed;
    rules->tool = chat.tool_name();
  } else if (!choice.empty() && choice != "auto" && choice != "none") {
    return RequestError("tool_choice is '%s', but must be one of auto, none, required, tool",
                        choice);
  }
  rules->parallel_calls = !chat.has_parallel_tool_calls() || chat.parallel_tool_calls();
  return OkStatus();
}

v1::FinishReason ToProto(FinishReason reason, bool tool_calls) {
  if (reason == FinishReason::kLength) return v1::FINISH_REASON_LENGTH;
  if (reason != FinishReason::kStop) return v1::FINISH_REASON_UNSPECIFIED;
  return tool_calls ? v1::FINISH_REASON_TOOL_CALLS : v1::FINISH_REASON_STOP;
}

void ToProto(const Summary& summary, v1::Usage* usage, v1::Timings* timings) {
  usage->set_prompt_tokens(summary.usage.prompt_tokens);
  usage->set_completion_tokens(summary.usage.completion_tokens);
  usage->set_total_tokens(summary.usage.prompt_tokens + summary.usage.completion_tokens);
  usage->set_cached_tokens(summary.usage.cached_tokens);
  timings->set_queue_seconds(summary.timings.queue_s);
  timings->set_prefill_seconds(summary.timings.prefill_s);
  timings->set_decode_seconds(summary.timings.decode_s);
  timings->set_prefill_tokens_per_second(
      Rate(static_cast<double>(summary.usage.prompt_tokens), summary.timings.prefill_s));
  timings->set_decode_tokens_per_second(
      Rate(static_cast<double>(summary.usage.completion_tokens - 1), summary.timings.decode_s));
}

void ToProto(const SampledToken& token, v1::TokenLogprobs* logprobs) {
  logprobs->mutable_chosen()->set_token_id(token.id);
  logprobs->mutable_chosen()->set_logprob(token.logprob);
  for (const TokenLogprob& entry : token.best) {
    v1::TokenLogprob* best = logprobs->add_best();
    best->set_token_id(entry.id);
    best->set_logprob(entry.logprob);
  }
}

}  // namespace lockstep
