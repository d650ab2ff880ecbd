#include "runtime/serve/openai_request.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "lockstep/v1/inference.pb.h"
#include "runtime/serve/convert.h"
#include "runtime/serve/http_errors.h"
#include "runtime/serve/json_fields.h"
#include "runtime/serve/reply_rules.h"

namespace lockstep {
namespace {

constexpr int64_t kMostInt = INT32_MAX;

// What clients send that has a meaning elsewhere and none here, or is the default here: said
// nothing about.
constexpr const char* kTolerated[] = {"user",
                                      "user_id",
                                      "metadata",
                                      "store",
                                      "service_tier",
                                      "request_id",
                                      "safety_identifier",
                                      "prompt_cache_key",
                                      "tool_stream",
                                      "skip_special_tokens",
                                      "spaces_between_special_tokens",
                                      "sensitive_word_check",
                                      "meta",
                                      "verbosity"};

Status ReadStops(JsonFields& fields, v1::StopOptions* stop) {
  const JsonValue* texts = fields.Get("stop");
  if (texts != nullptr && texts->is_string()) {
    stop->add_texts(texts->AsString());
  } else if (texts != nullptr) {
    if (!texts->is_array())
      return RequestError("stop is %s, but must be a string or an array", texts->KindName());
    if (texts->AsArray().size() > kMaxStopTexts) {
      return RequestError("stop has %d strings, but may have at most %d", texts->AsArray().size(),
                          kMaxStopTexts);
    }
    for (const JsonValue& text : texts->AsArray()) {
      if (!text.is_string())
        return RequestError("stop holds %s, but must hold strings", text.KindName());
      stop->add_texts(text.AsString());
    }
  }
  const JsonValue* ids = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("stop_token_ids", &ids));
  if (ids == nullptr) return OkStatus();
  if (ids->AsArray().size() > kMaxStopTokens) {
    return RequestError("stop_token_ids has %d ids, but may have at most %d", ids->AsArray().size(),
                        kMaxStopTokens);
  }
  for (const JsonValue& id : ids->AsArray()) {
    const std::optional<int64_t> value = id.ToInt64();
    if (!value.has_value() || *value < 0 || *value > kMostInt)
      return RequestError("stop_token_ids holds %s, which is no token id", id.Dump());
    stop->add_token_ids(static_cast<int32_t>(*value));
  }
  return OkStatus();
}

Status ReadLogitBias(JsonFields& fields, v1::SamplingOptions* sampling) {
  const JsonValue* bias = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("logit_bias", &bias));
  if (bias == nullptr) return OkStatus();
  for (const JsonMember& member : bias->AsObject()) {
    int32_t id = -1;
    const char* end = member.key.data() + member.key.size();
    const auto read = std::from_chars(member.key.data(), end, id);
    if (read.ec != std::errc() || read.ptr != end || id < 0)
      return RequestError("logit_bias has the key '%s', which is no token id", member.key);
    const std::optional<double> value = member.value.ToDouble();
    if (!value.has_value())
      return RequestError("logit_bias.%s is %s, but must be a number", member.key,
                          member.value.KindName());
    (*sampling->mutable_logit_bias())[id] = static_cast<float>(*value);
  }
  return OkStatus();
}

// What both kinds of completion have in common.
Status ReadGeneration(JsonFields& fields, v1::SamplingOptions* sampling, v1::StopOptions* stop) {
  std::optional<double> number;
  const auto read = [&](const char* name, auto set) -> Status {
    number.reset();
    LOCKSTEP_RETURN_IF_ERROR(fields.Read(name, &number));
    if (number.has_value()) (sampling->*set)(*number);
    return OkStatus();
  };
  using S = v1::SamplingOptions;
  LOCKSTEP_RETURN_IF_ERROR(read("temperature", &S::set_temperature));
  LOCKSTEP_RETURN_IF_ERROR(read("top_p", &S::set_top_p));
  LOCKSTEP_RETURN_IF_ERROR(read("min_p", &S::set_min_p));
  LOCKSTEP_RETURN_IF_ERROR(read("repetition_penalty", &S::set_repetition_penalty));
  LOCKSTEP_RETURN_IF_ERROR(read("presence_penalty", &S::set_presence_penalty));
  LOCKSTEP_RETURN_IF_ERROR(read("frequency_penalty", &S::set_frequency_penalty));
  std::optional<int64_t> whole;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("top_k", &whole, -1, kMostInt));
  if (whole.has_value()) sampling->set_top_k(static_cast<int32_t>(std::max<int64_t>(*whole, 0)));
  whole.reset();
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("seed", &whole, INT64_MIN, INT64_MAX));
  if (whole.has_value()) sampling->set_seed(static_cast<uint64_t>(*whole));
  std::optional<bool> flag;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("do_sample", &flag));
  // A temperature beyond its bounds stays, and is refused.
  const bool in_bounds = sampling->temperature() >= 0 && sampling->temperature() <= 100;
  if (flag.has_value() && !*flag && in_bounds) sampling->set_temperature(0);
  flag.reset();
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("ignore_eos", &flag));
  stop->set_ignore_eos(flag.value_or(false));
  // The newer name wins, as at OpenAI.
  std::optional<int64_t> most, most_completion;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("max_tokens", &most, 1, kMostInt));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("max_completion_tokens", &most_completion, 1, kMostInt));
  if (most_completion.has_value()) most = most_completion;
  if (most.has_value()) stop->set_max_tokens(static_cast<int32_t>(*most));
  LOCKSTEP_RETURN_IF_ERROR(ReadStops(fields, stop));
  return ReadLogitBias(fields, sampling);
}

// What says nothing about the answer itself.
Status ReadDelivery(JsonFields& fields, OpenAiRequest* request) {
  std::optional<bool> stream, include_usage;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("stream", &stream));
  const JsonValue* options = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("stream_options", &options));
  if (options != nullptr) {
    JsonFields inner(*options, "stream_options.");
    LOCKSTEP_RETURN_IF_ERROR(inner.Read("include_usage", &include_usage));
  }
  std::optional<int64_t> priority;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("priority", &priority, INT32_MIN, INT32_MAX));
  request->priority = static_cast<int32_t>(priority.value_or(0));
  request->stream = stream.value_or(false);
  request->include_usage = include_usage.value_or(false);
  return OkStatus();
}

Status TooLong(int64_t max_model_len, const std::string& tokens) {
  return MakeError(
      ErrorKind::kRequest, kContextExceeded,
      absl::StrFormat("This model's maximum context length is %d tokens, answer included, but the "
                      "prompt has %s. Shorten it, or have the server started with a larger "
                      "--max-model-len.",
                      max_model_len, tokens));
}

// One request per prompt and choice. Choices with one seed would be one choice: each next one adds
// one to it.
Status AddChoices(const std::vector<std::vector<int32_t>>& prompts, int64_t choices,
                  const v1::SamplingOptions& sampling, const v1::StopOptions& stop,
                  const ModelText& text, int64_t max_model_len, OpenAiRequest* request) {
  if (static_cast<int64_t>(prompts.size()) * choices > kMaxChoices) {
    return RequestError("%d prompts times n = %d are more than %d choices", prompts.size(), choices,
                        kMaxChoices);
  }
  request->choices_per_prompt = static_cast<size_t>(choices);
  for (const std::vector<int32_t>& prompt : prompts) {
    const auto length = static_cast<int64_t>(prompt.size());
    if (length == 0) return RequestError("the prompt is empty");
    if (length >= max_model_len) return TooLong(max_model_len, absl::StrFormat("%d", length));
    for (int64_t choice = 0; choice < choices; ++choice) {
      Request one;
      LOCKSTEP_RETURN_IF_ERROR(FillRequest(sampling, stop, text, &one));
      if (sampling.has_seed()) one.sampling.seed += static_cast<uint64_t>(choice);
      one.prompt = prompt;
      one.priority = request->priority;
      request->requests.push_back(std::move(one));
    }
  }
  return OkStatus();
}

void NoteUnknown(const JsonFields& fields, OpenAiRequest* request) {
  for (const std::string& name : fields.Unread()) {
    if (std::find(std::begin(kTolerated), std::end(kTolerated), name) == std::end(kTolerated))
      request->notes.push_back(NoMeaning(name));
  }
}

// A literal "extra_body" object, as some guides' raw JSON has it: its fields are the body's.
StatusOr<JsonValue> MergeExtraBody(const JsonValue& body, std::vector<std::string>* notes) {
  JsonFields fields(body);
  const JsonValue* extra = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("extra_body", &extra));
  if (extra == nullptr) return body;
  if (extra->AsObject().size() > kMaxFields)
    return RequestError("extra_body has more than %d fields", kMaxFields);
  JsonValue merged = JsonValue::MakeObject();
  for (const JsonMember& member : body.AsObject()) {
    if (member.key != "extra_body") merged.Set(member.key, member.value);
  }
  for (const JsonMember& member : extra->AsObject()) {
    if (merged.Find(member.key) == nullptr) merged.Set(member.key, member.value);
  }
  notes->emplace_back("extra_body is none of the API's: its fields were taken");
  return merged;
}

bool IsOneOf(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

Status CheckContent(const JsonValue& content, const std::string& where) {
  if (content.is_null() || content.is_string()) return OkStatus();
  if (!content.is_array())
    return RequestError("%s is %s, but must be a string or an array of parts", where,
                        content.KindName());
  for (size_t i = 0; i < content.AsArray().size(); ++i) {
    const JsonValue& part = content.AsArray()[i];
    const JsonValue* type = part.Find("type");
    if (part.is_string()) continue;
    if (type == nullptr || !type->is_string())
      return RequestError("%s[%d] is no part with a type", where, i);
    const JsonValue* text = part.Find("text");
    if (type->AsString() != "text" || text == nullptr || !text->is_string()) {
      return RequestError("%s[%d] is of type '%s', but this model reads text only", where, i,
                          type->AsString());
    }
  }
  return OkStatus();
}

// The message as the template knows it.
StatusOr<JsonValue> ToTemplate(const JsonValue& message, const std::string& where) {
  if (!message.is_object())
    return RequestError("%s is %s, but must be an object", where, message.KindName());
  JsonFields fields(message, where + ".");
  std::optional<std::string> role;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("role", &role));
  if (!role.has_value()) return RequestError("%s.role is missing", where);
  if (!IsOneOf(*role, {"system", "developer", "user", "assistant", "tool"})) {
    return RequestError(
        "%s.role is '%s', but must be one of system, developer, user, assistant, tool", where,
        *role);
  }
  const JsonValue* content = fields.Get("content");
  if (content != nullptr) {
    LOCKSTEP_RETURN_IF_ERROR(CheckContent(*content, where + ".content"));
  } else if (*role != "assistant") {
    return RequestError("%s.content is missing", where);
  }
  for (const char* name : {"tool_call_id", "reasoning_content"}) {
    std::optional<std::string> text;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read(name, &text));
  }
  const JsonValue* calls = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tool_calls", &calls));
  if (calls != nullptr && *role != "assistant" && !calls->AsArray().empty())
    return RequestError("%s has role %s, but only an assistant has tool_calls", where, *role);
  JsonValue out = message;
  if (*role == "developer") out.Set("role", JsonValue::String("system"));
  if (content == nullptr) out.Set("content", JsonValue::String(""));
  return out;
}

Status ReadTools(JsonFields& fields, ChatRequest* chat) {
  const JsonValue* tools = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tools", &tools));
  LOCKSTEP_ASSIGN_OR_RETURN(const bool off, ToolsAreOff(fields));
  if (tools == nullptr || tools->AsArray().empty()) return OkStatus();
  if (tools->AsArray().size() > kMaxTools)
    return RequestError("tools has %d entries, but may have at most %d", tools->AsArray().size(),
                        kMaxTools);
  for (size_t i = 0; i < tools->AsArray().size(); ++i) {
    const JsonValue& tool = tools->AsArray()[i];
    const JsonValue* function = tool.Find("function");
    const JsonValue* name = function == nullptr ? nullptr : function->Find("name");
    if (name == nullptr || !name->is_string() || name->AsString().empty()) {
      return RequestError(
          "tools[%d] must be {\"type\": \"function\", \"function\": {\"name\": ..., ...}}", i);
    }
  }
  if (!off) chat->tools = *tools;
  return OkStatus();
}

// Z.ai's `thinking`, vLLM's chat_template_kwargs, OpenAI's reasoning_effort: the last of these that
// says something counts.
Status ReadThinking(JsonFields& fields, ChatRequest* chat) {
  std::optional<std::string> effort;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("reasoning_effort", &effort));
  if (effort.has_value()) {
    if (!IsOneOf(*effort, {"none", "minimal", "low", "medium", "high", "xhigh", "max"})) {
      return RequestError(
          "reasoning_effort is '%s', but must be one of none, minimal, low, medium, high, xhigh, "
          "max",
          *effort);
    }
    // GLM-4.7 thinks or does not; how long is its own matter.
    chat->enable_thinking = *effort != "none";
  }
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("enable_thinking", &chat->enable_thinking));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("clear_thinking", &chat->clear_thinking));
  const JsonValue* more = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("chat_template_kwargs", &more));
  if (more != nullptr) {
    JsonFields inner(*more, "chat_template_kwargs.");
    LOCKSTEP_RETURN_IF_ERROR(inner.Read("enable_thinking", &chat->enable_thinking));
    LOCKSTEP_RETURN_IF_ERROR(inner.Read("clear_thinking", &chat->clear_thinking));
  }
  const JsonValue* thinking = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("thinking", &thinking));
  if (thinking == nullptr) return OkStatus();
  JsonFields inner(*thinking, "thinking.");
  std::optional<std::string> type;
  LOCKSTEP_RETURN_IF_ERROR(inner.Read("type", &type));
  LOCKSTEP_RETURN_IF_ERROR(inner.Read("clear_thinking", &chat->clear_thinking));
  if (!type.has_value()) return OkStatus();
  if (!IsOneOf(*type, {"enabled", "disabled"}))
    return RequestError("thinking.type is '%s', but must be enabled or disabled", *type);
  chat->enable_thinking = *type == "enabled";
  return OkStatus();
}

// Under its names at Anthropic and Z.ai, Qwen, and vLLM; the last of these that says something
// counts.
Status ReadThinkingBudget(JsonFields& fields, v1::SamplingOptions* sampling) {
  std::optional<int64_t> budget;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("thinking_budget", &budget, -1, kMostInt));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("thinking_token_budget", &budget, -1, kMostInt));
  for (const auto& [object, name] : {std::pair("chat_template_kwargs", "thinking_budget"),
                                     std::pair("thinking", "budget_tokens")}) {
    const JsonValue* inside = nullptr;
    LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject(object, &inside));
    if (inside == nullptr) continue;
    JsonFields inner(*inside, absl::StrCat(object, "."));
    LOCKSTEP_RETURN_IF_ERROR(inner.Read(name, &budget, -1, kMostInt));
  }
  if (budget.has_value()) sampling->set_thinking_budget(*budget);
  return OkStatus();
}

StatusOr<ChatRequest> ReadConversation(JsonFields& fields) {
  const JsonValue* messages = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("messages", &messages));
  if (messages == nullptr || messages->AsArray().empty())
    return RequestError("messages is missing or empty");
  if (messages->AsArray().size() > kMaxMessages) {
    return RequestError("messages has %d entries, but may have at most %d",
                        messages->AsArray().size(), kMaxMessages);
  }
  ChatRequest chat;
  chat.form = ChatRequest::Form::kOpenAi;
  for (size_t i = 0; i < messages->AsArray().size(); ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        JsonValue message, ToTemplate(messages->AsArray()[i], absl::StrFormat("messages[%d]", i)));
    chat.messages.AsArray().push_back(std::move(message));
  }
  LOCKSTEP_RETURN_IF_ERROR(ReadTools(fields, &chat));
  LOCKSTEP_RETURN_IF_ERROR(ReadThinking(fields, &chat));
  return chat;
}

// The ids of one prompt: text, or ids.
StatusOr<std::vector<int32_t>> PromptIds(const JsonValue& prompt, const ModelText& text,
                                         int64_t max_model_len) {
  if (prompt.is_string()) return EncodePrompt(prompt.AsString(), text, max_model_len);
  std::vector<int32_t> ids;
  for (const JsonValue& id : prompt.AsArray()) {
    const std::optional<int64_t> value = id.ToInt64();
    if (!value.has_value() || *value < 0 || *value > kMostInt)
      return RequestError("prompt holds %s, which is no token id", id.Dump());
    ids.push_back(static_cast<int32_t>(*value));
  }
  return ids;
}

// "text", ["text", ...], [ids...] or [[ids...], ...].
StatusOr<std::vector<std::vector<int32_t>>> ReadPrompts(JsonFields& fields, const ModelText& text,
                                                        int64_t max_model_len) {
  const JsonValue* prompt = fields.Get("prompt");
  if (prompt == nullptr) return RequestError("prompt is missing");
  if (!prompt->is_string() && !prompt->is_array())
    return RequestError("prompt is %s, but must be a string or an array", prompt->KindName());
  const bool several = prompt->is_array() && !prompt->AsArray().empty() &&
                       (prompt->AsArray()[0].is_string() || prompt->AsArray()[0].is_array());
  std::vector<std::vector<int32_t>> prompts;
  if (!several) {
    LOCKSTEP_ASSIGN_OR_RETURN(prompts.emplace_back(), PromptIds(*prompt, text, max_model_len));
    return prompts;
  }
  if (prompt->AsArray().size() > static_cast<size_t>(kMaxChoices))
    return RequestError("prompt has %d entries, but may have at most %d", prompt->AsArray().size(),
                        kMaxChoices);
  for (const JsonValue& one : prompt->AsArray()) {
    if (!one.is_string() && !one.is_array())
      return RequestError("prompt holds %s among its prompts", one.KindName());
    LOCKSTEP_ASSIGN_OR_RETURN(prompts.emplace_back(), PromptIds(one, text, max_model_len));
  }
  return prompts;
}

}  // namespace

StatusOr<std::vector<int32_t>> EncodePrompt(std::string_view prompt, const ModelText& text,
                                            int64_t max_model_len) {
  const auto bytes = static_cast<int64_t>(prompt.size());
  const int64_t fewest = bytes / static_cast<int64_t>(text.tokenizer->longest_token_bytes());
  if (fewest >= max_model_len)
    return TooLong(max_model_len, absl::StrFormat("more than %d", fewest));
  return text.tokenizer->Encode(prompt);
}

StatusOr<ChatRequest> ParseConversation(const JsonValue& body) {
  JsonFields fields(body);
  return ReadConversation(fields);
}

StatusOr<OpenAiRequest> ParseChatCompletion(const JsonValue& given, const ModelText& text,
                                            int64_t max_model_len) {
  OpenAiRequest request;
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue body, MergeExtraBody(given, &request.notes));
  JsonFields fields(body);
  if (!text.chat_family) {
    return MakeError(ErrorKind::kRequest, absl::StatusCode::kFailedPrecondition,
                     MessageOf(text.RequireChatFamily().status()));
  }
  v1::SamplingOptions sampling;
  v1::StopOptions stop;
  (void)fields.Get("model");  // which the caller has looked at
  LOCKSTEP_RETURN_IF_ERROR(ReadGeneration(fields, &sampling, &stop));
  LOCKSTEP_RETURN_IF_ERROR(ReadThinkingBudget(fields, &sampling));
  LOCKSTEP_RETURN_IF_ERROR(ReadDelivery(fields, &request));
  std::optional<bool> logprobs;
  std::optional<int64_t> best, choices;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("logprobs", &logprobs));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("top_logprobs", &best, 0, kMaxLogprobs));
  if (logprobs.value_or(false)) sampling.set_logprobs(static_cast<int32_t>(best.value_or(0)));
  if (best.value_or(0) > 0 && !logprobs.value_or(false))
    return RequestError("top_logprobs needs \"logprobs\": true");
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("n", &choices, 1, kMaxChoices));
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest chat, ReadConversation(fields));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string prompt, RenderChat(*text.chat_family, chat));
  request.start = ReplyStartOf(prompt);
  request.tools = chat.tools;
  ReplyRules rules;
  rules.tools = chat.tools;
  LOCKSTEP_RETURN_IF_ERROR(ReadReplyRules(fields, &rules));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string grammar,
                            MakeReplyGrammar(rules, request.start, *text.chat_family));
  NoteUnknown(fields, &request);
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<int32_t> ids, EncodePrompt(prompt, text, max_model_len));
  LOCKSTEP_RETURN_IF_ERROR(AddChoices({std::move(ids)}, choices.value_or(1), sampling, stop, text,
                                      max_model_len, &request));
  for (Request& one : request.requests) one.grammar = grammar;
  return request;
}

StatusOr<OpenAiRequest> ParseCompletion(const JsonValue& given, const ModelText& text,
                                        int64_t max_model_len) {
  OpenAiRequest request;
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue body, MergeExtraBody(given, &request.notes));
  JsonFields fields(body);
  v1::SamplingOptions sampling;
  v1::StopOptions stop;
  (void)fields.Get("model");  // which the caller has looked at
  LOCKSTEP_RETURN_IF_ERROR(ReadGeneration(fields, &sampling, &stop));
  // The older API's default, unlike that of chats.
  if (!stop.has_max_tokens()) stop.set_max_tokens(16);
  LOCKSTEP_RETURN_IF_ERROR(ReadDelivery(fields, &request));
  ReplyRules rules;
  LOCKSTEP_RETURN_IF_ERROR(ReadSchema(fields, &rules));
  std::optional<int64_t> best, choices;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("logprobs", &best, 0, kMaxLogprobs));
  if (best.has_value()) sampling.set_logprobs(static_cast<int32_t>(*best));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("n", &choices, 1, kMaxChoices));
  std::optional<bool> echo;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("echo", &echo));
  if (echo.value_or(false)) return RequestError("echo: the prompt is not given back");
  std::optional<std::string> suffix;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("suffix", &suffix));
  if (!suffix.value_or("").empty()) return RequestError("suffix: text is not inserted");
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> prompts,
                            ReadPrompts(fields, text, max_model_len));
  NoteUnknown(fields, &request);
  LOCKSTEP_RETURN_IF_ERROR(
      AddChoices(prompts, choices.value_or(1), sampling, stop, text, max_model_len, &request));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string grammar, MakeTextGrammar(rules));
  for (Request& one : request.requests) one.grammar = grammar;
  return request;
}

}  // namespace lockstep
