#include "runtime/text/chat_template.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <utility>

#include "runtime/base/digest.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

// The parts of the prompt in which the families differ. GLM-4.6 puts newlines between parts,
// GLM-4.7 puts none.
constexpr std::string_view kToolsHead =
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n";
constexpr std::string_view kToolsTail =
    "</tools>\n\nFor each function call, output the function name and arguments within the "
    "following XML format:\n";
constexpr std::string_view kCallFormat47 =
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>";
constexpr std::string_view kCallFormat46 =
    "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</"
    "arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>";

// Digests of the two template texts without a last newline, which Jinja drops too.
constexpr uint64_t kDigest46 = 0x05c556566a3840a7;
constexpr uint64_t kDigest47 = 0x9908ff553a4cc3df;

bool IsTextPart(const JsonValue& part) {
  const JsonValue* type = part.Find("type");
  return type != nullptr && type->is_string() && type->AsString() == "text";
}

// The templates' macro visible_text: a string itself, the text parts of a list, anything else as
// Python prints it. `content` may be null: undefined.
std::string VisibleText(const JsonValue* content) {
  if (content == nullptr) return "";
  if (!content->is_array()) return content->PythonStr();
  std::string text;
  for (const JsonValue& part : content->AsArray()) {
    if (part.is_string()) {
      text += part.AsString();
    } else if (IsTextPart(part)) {
      const JsonValue* part_text = part.Find("text");
      if (part_text != nullptr) text += part_text->PythonStr();
    }
  }
  return text;
}

std::string_view RoleOf(const JsonValue& message) {
  const JsonValue* role = message.Find("role");
  return role != nullptr && role->is_string() ? std::string_view(role->AsString())
                                              : std::string_view();
}

// Tool call arguments given as JSON text become values; OpenAI clients also leave out empty ones.
Status NormalizeArguments(JsonValue* call, ChatRequest::Form form, const std::string& where) {
  JsonValue* function = call->Find("function");
  JsonValue* holder = function != nullptr && function->Truthy() ? function : call;
  if (!holder->is_object()) return OkStatus();
  JsonValue* arguments = holder->Find("arguments");
  if (arguments == nullptr || arguments->is_null()) {
    if (form == ChatRequest::Form::kOpenAi) holder->Set("arguments", JsonValue::MakeObject());
    return OkStatus();
  }
  if (!arguments->is_string()) return OkStatus();
  const std::string text(PythonStrip(arguments->AsString()));
  if (text.empty()) {
    *arguments = JsonValue::MakeObject();
    return OkStatus();
  }
  StatusOr<JsonValue> parsed = ParseJson(text, kStrangersJson);
  if (!parsed.ok()) {
    return RequestError("%s.arguments is a string that is not JSON (%s); send a JSON object", where,
                        MessageOf(parsed.status()));
  }
  *arguments = *std::move(parsed);
  return OkStatus();
}

// Text parts of a tool result become one string. A list with anything else in it stays as it is.
void JoinToolContent(JsonValue* content) {
  if (content == nullptr || !content->is_array()) return;
  const JsonValue::Array& parts = content->AsArray();
  if (!std::all_of(parts.begin(), parts.end(),
                   [](const JsonValue& part) { return part.is_string() || IsTextPart(part); })) {
    return;
  }
  *content = JsonValue::String(VisibleText(content));
}

// What transformers and servers do to a message before the template sees it: members that are null
// are dropped (but content becomes ""), reasoning is found under its older names, arguments are
// values.
StatusOr<JsonValue> NormalizeMessage(const JsonValue& message, ChatRequest::Form form,
                                     const std::string& where) {
  if (!message.is_object()) {
    return RequestError("%s must be an object with role and content, not %s", where,
                        message.KindName());
  }
  JsonValue out = JsonValue::MakeObject();
  for (const JsonMember& member : message.AsObject()) {
    if (!member.value.is_null()) {
      out.AsObject().push_back(member);
    } else if (member.key == "content") {
      out.AsObject().push_back({member.key, JsonValue::String("")});
    }
  }
  if (out.Find("reasoning_content") == nullptr) {
    for (const char* alias : {"thinking", "reasoning"}) {
      if (const JsonValue* reasoning = out.Find(alias)) {
        JsonValue copy = *reasoning;
        out.Set("reasoning_content", std::move(copy));
        break;
      }
    }
  }
  if (form == ChatRequest::Form::kOpenAi && RoleOf(out) == "tool")
    JoinToolContent(out.Find("content"));
  JsonValue* calls = out.Find("tool_calls");
  if (calls != nullptr && calls->is_array()) {
    for (size_t i = 0; i < calls->AsArray().size(); ++i) {
      LOCKSTEP_RETURN_IF_ERROR(NormalizeArguments(&calls->AsArray()[i], form,
                                                  absl::StrFormat("%s.tool_calls[%d]", where, i)));
    }
  }
  return out;
}

// Writes one prompt. The layout of the checkpoints' Jinja files is followed statement by statement.
class Renderer {
 public:
  Renderer(ChatFamily family, const ChatRequest& request)
      : old_(family == ChatFamily::kGlm46), request_(request) {}

  StatusOr<std::string> Render();

 private:
  Status RenderTools();
  void RenderUser(const JsonValue& message);
  Status RenderAssistant(const JsonValue& message, size_t index);
  Status RenderCall(const JsonValue& call, const std::string& where);
  StatusOr<const JsonValue::Object*> ArgumentsOf(const JsonValue& function,
                                                 const std::string& where) const;
  Status RenderToolResult(const JsonValue& message, size_t index);
  void AppendResponse(std::string_view text);
  bool ThinkingOff() const {
    return request_.enable_thinking.has_value() && !*request_.enable_thinking;
  }
  // The newline that only GLM-4.6 has.
  void NewlineIfOld() {
    if (old_) out_ += '\n';
  }

  bool old_;
  const ChatRequest& request_;
  std::vector<JsonValue> messages_;
  size_t after_last_user_ = 0;  // index of the first message behind the last user turn
  std::string out_;
};

Status Renderer::RenderTools() {
  const JsonValue& tools = request_.tools;
  if (tools.is_null()) return OkStatus();
  if (!tools.is_array())
    return RequestError("tools must be an array of objects, not %s", tools.KindName());
  if (tools.AsArray().empty()) return OkStatus();
  out_ += kToolsHead;
  for (size_t i = 0; i < tools.AsArray().size(); ++i) {
    const JsonValue& tool = tools.AsArray()[i];
    if (!tool.is_object())
      return RequestError("tools[%d] must be an object, not %s", i, tool.KindName());
    out_ += tool.Dump();
    out_ += '\n';
  }
  out_ += kToolsTail;
  out_ += old_ ? kCallFormat46 : kCallFormat47;
  return OkStatus();
}

void Renderer::RenderUser(const JsonValue& message) {
  const std::string text = VisibleText(message.Find("content"));
  out_ += "<|user|>";
  NewlineIfOld();
  out_ += text;
  if (old_ && ThinkingOff() && !text.ends_with("/nothink")) out_ += "/nothink";
}

Status Renderer::RenderAssistant(const JsonValue& message, size_t index) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  const std::string whole = VisibleText(message.Find("content"));
  std::string_view content = whole, reasoning;
  const JsonValue* given = message.Find("reasoning_content");
  if (given != nullptr && given->is_string()) {
    reasoning = given->AsString();
  } else if (const size_t first_close = content.find(kClose);
             first_close != std::string_view::npos) {
    reasoning = StripTrailingNewlines(content.substr(0, first_close));
    if (const size_t open = reasoning.rfind(kOpen); open != std::string_view::npos) {
      reasoning.remove_prefix(open + kOpen.size());
    }
    reasoning = StripLeadingNewlines(reasoning);
    content = StripLeadingNewlines(content.substr(content.rfind(kClose) + kClose.size()));
  }
  const bool keep_old = !old_ && request_.clear_thinking.has_value() && !*request_.clear_thinking;
  const bool keep = (keep_old || index >= after_last_user_) && !reasoning.empty();
  out_ += "<|assistant|>";
  if (old_) out_ += "\n<think>";
  if (keep) {
    if (!old_) out_ += kOpen;
    out_ += PythonStrip(reasoning);
  }
  out_ += kClose;
  if (const std::string_view stripped = PythonStrip(content); !stripped.empty()) {
    NewlineIfOld();
    out_ += stripped;
  }
  const JsonValue* calls = message.Find("tool_calls");
  if (calls == nullptr || !calls->Truthy()) return OkStatus();
  const std::string where = absl::StrFormat("messages[%d].tool_calls", index);
  if (!calls->is_array())
    return RequestError("%s must be an array of calls, not %s", where, calls->KindName());
  for (size_t i = 0; i < calls->AsArray().size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(RenderCall(calls->AsArray()[i], absl::StrFormat("%s[%d]", where, i)));
  }
  return OkStatus();
}

Status Renderer::RenderCall(const JsonValue& call, const std::string& where) {
  const JsonValue* inner = call.Find("function");
  const JsonValue& function = inner != nullptr && inner->Truthy() ? *inner : call;
  const JsonValue* name = function.Find("name");
  if (name == nullptr || !name->is_string()) {
    return RequestError(
        "%s has no name: send {\"function\": {\"name\": ..., \"arguments\": {...}}}", where);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue::Object* arguments, ArgumentsOf(function, where));
  NewlineIfOld();
  out_ += "<tool_call>" + name->AsString();
  NewlineIfOld();
  for (const JsonMember& argument : *arguments) {
    out_ += "<arg_key>" + argument.key + "</arg_key>";
    NewlineIfOld();
    out_ += "<arg_value>";
    out_ += argument.value.is_string() ? argument.value.AsString() : argument.value.Dump();
    out_ += "</arg_value>";
    NewlineIfOld();
  }
  out_ += "</tool_call>";
  return OkStatus();
}

StatusOr<const JsonValue::Object*> Renderer::ArgumentsOf(const JsonValue& function,
                                                         const std::string& where) const {
  static const JsonValue::Object kNone;
  const JsonValue* arguments = function.Find("arguments");
  // GLM-4.6's template says "arguments or {}", GLM-4.7's does not.
  if (old_ && (arguments == nullptr || !arguments->Truthy())) return &kNone;
  if (arguments == nullptr || !arguments->is_object()) {
    return RequestError("%s.arguments must be an object, but is %s", where,
                        arguments == nullptr ? "missing" : arguments->KindName());
  }
  return &arguments->AsObject();
}

void Renderer::AppendResponse(std::string_view text) {
  if (old_) {
    out_ += "\n<tool_response>\n";
    out_ += text;
    out_ += "\n</tool_response>";
  } else {
    out_ += "<tool_response>";
    out_ += text;
    out_ += "</tool_response>";
  }
}

Status Renderer::RenderToolResult(const JsonValue& message, size_t index) {
  const JsonValue* content = message.Find("content");
  if (content != nullptr && content->is_string()) {
    if (index == 0 || RoleOf(messages_[index - 1]) != "tool") out_ += "<|observation|>";
    AppendResponse(content->AsString());
    return OkStatus();
  }
  out_ += "<|observation|>";
  if (content == nullptr) return OkStatus();
  if (content->is_object()) {  // Python loops over the keys
    for (const JsonMember& member : content->AsObject()) AppendResponse(member.key);
    return OkStatus();
  }
  if (!content->is_array()) {
    return RequestError("messages[%d].content of a tool must be a string or an array, not %s",
                        index, content->KindName());
  }
  for (const JsonValue& result : content->AsArray()) {
    const JsonValue* output = result.Find("output");
    AppendResponse(output != nullptr ? output->PythonStr() : result.PythonStr());
  }
  return OkStatus();
}

StatusOr<std::string> Renderer::Render() {
  if (!request_.messages.is_array()) {
    return RequestError("messages must be an array of objects, not %s",
                        request_.messages.KindName());
  }
  const JsonValue::Array& given = request_.messages.AsArray();
  if (given.empty()) return RequestError("messages is empty: send at least one message");
  for (size_t i = 0; i < given.size(); ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        JsonValue message,
        NormalizeMessage(given[i], request_.form, absl::StrFormat("messages[%d]", i)));
    if (RoleOf(message) == "user") after_last_user_ = i + 1;
    messages_.push_back(std::move(message));
  }
  out_ = "[gMASK]<sop>";
  LOCKSTEP_RETURN_IF_ERROR(RenderTools());
  for (size_t i = 0; i < messages_.size(); ++i) {
    const JsonValue& message = messages_[i];
    const std::string_view role = RoleOf(message);
    if (role == "user") {
      RenderUser(message);
    } else if (role == "assistant") {
      LOCKSTEP_RETURN_IF_ERROR(RenderAssistant(message, i));
    } else if (role == "tool") {
      LOCKSTEP_RETURN_IF_ERROR(RenderToolResult(message, i));
    } else if (role == "system") {
      out_ += "<|system|>";
      NewlineIfOld();
      out_ += VisibleText(message.Find("content"));
    }
  }
  if (request_.add_generation_prompt) {
    out_ += "<|assistant|>";
    if (old_) {
      if (ThinkingOff()) out_ += "\n<think></think>";
    } else {
      out_ += ThinkingOff() ? "</think>" : "<think>";
    }
  }
  return std::move(out_);
}

Status ReadFlag(const JsonValue& value, const char* key, std::optional<bool>* flag) {
  const JsonValue* found = value.Find(key);
  if (found == nullptr || found->is_null()) return OkStatus();
  if (!found->is_bool())
    return RequestError("%s must be true or false, not %s", key, found->KindName());
  *flag = found->AsBool();
  return OkStatus();
}

bool ContainsAll(std::string_view text, std::initializer_list<std::string_view> markers) {
  return std::all_of(markers.begin(), markers.end(), [&](std::string_view marker) {
    return text.find(marker) != std::string_view::npos;
  });
}

uint64_t DigestOfText(std::string_view text) { return DigestOf(text.data(), text.size()); }

}  // namespace

const char* ChatFamilyName(ChatFamily family) {
  return family == ChatFamily::kGlm46 ? "glm-4.6" : "glm-4.7";
}

StatusOr<ChatFamily> ParseChatFamily(std::string_view name) {
  for (ChatFamily family : {ChatFamily::kGlm46, ChatFamily::kGlm47}) {
    if (name == ChatFamilyName(family)) return family;
  }
  return UsageError(
      "--chat-template: \"%s\" is not a template lockstep has; use auto, glm-4.6 or glm-4.7", name);
}

void ChatRequest::AddMessage(std::string_view role, std::string_view content) {
  messages.AsArray().push_back(
      JsonValue::MakeObject({{"role", JsonValue::String(std::string(role))},
                             {"content", JsonValue::String(std::string(content))}}));
}

void ChatRequest::AddAssistantMessage(std::string_view content, std::string_view reasoning) {
  AddMessage("assistant", content);
  if (!reasoning.empty()) {
    messages.AsArray().back().Set("reasoning_content", JsonValue::String(std::string(reasoning)));
  }
}

StatusOr<ChatRequest> ChatRequestFromJson(const JsonValue& value) {
  if (!value.is_object())
    return RequestError("a chat request must be an object, not %s", value.KindName());
  ChatRequest request;
  for (const JsonMember& member : value.AsObject()) {
    if (member.key == "messages") {
      request.messages = member.value;
    } else if (member.key == "tools") {
      request.tools = member.value;
    } else if (member.key == "form") {
      const bool text = member.value.is_string();
      if (text && member.value.AsString() == "openai") {
        request.form = ChatRequest::Form::kOpenAi;
      } else if (!member.value.is_null() && !(text && member.value.AsString() == "template")) {
        return RequestError("form must be \"template\" or \"openai\", not %s",
                            member.value.Dump().substr(0, 60));
      }
    } else if (member.key != "add_generation_prompt" && member.key != "enable_thinking" &&
               member.key != "clear_thinking") {
      return RequestError(
          "unknown key \"%s\"; known are messages, tools, form, add_generation_prompt, "
          "enable_thinking, clear_thinking",
          member.key);
    }
  }
  if (value.Find("messages") == nullptr) return RequestError("messages is missing");
  std::optional<bool> add_generation_prompt;
  LOCKSTEP_RETURN_IF_ERROR(ReadFlag(value, "add_generation_prompt", &add_generation_prompt));
  LOCKSTEP_RETURN_IF_ERROR(ReadFlag(value, "enable_thinking", &request.enable_thinking));
  LOCKSTEP_RETURN_IF_ERROR(ReadFlag(value, "clear_thinking", &request.clear_thinking));
  request.add_generation_prompt = add_generation_prompt.value_or(true);
  return request;
}

StatusOr<std::string> RenderChat(ChatFamily family, const ChatRequest& request) {
  return Renderer(family, request).Render();
}

ChatTemplateMatch RecognizeChatTemplate(std::string_view jinja) {
  ChatTemplateMatch match;
  match.digest = absl::StrFormat("%016x", DigestOfText(jinja));
  if (!ContainsAll(jinja, {"[gMASK]<sop>", "<|system|>", "<|user|>", "<|assistant|>",
                           "<|observation|>", "<tool_response>", "<arg_key>", "</think>"})) {
    return match;
  }
  // Only the older templates speak of /nothink, only the newer ones of clear_thinking.
  if (jinja.find("/nothink") != std::string_view::npos) {
    match.family = ChatFamily::kGlm46;
  } else if (jinja.find("clear_thinking") != std::string_view::npos) {
    match.family = ChatFamily::kGlm47;
  } else {
    return match;
  }
  const std::string_view text = jinja.ends_with('\n') ? jinja.substr(0, jinja.size() - 1) : jinja;
  match.exact = DigestOfText(text) == (match.family == ChatFamily::kGlm46 ? kDigest46 : kDigest47);
  return match;
}

}  // namespace lockstep
