// The chat templates of GLM-4.6 and of GLM-4.7 and GLM-4.7-Flash, rendered natively.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/text/json_value.h"

namespace lockstep {

enum class ChatFamily { kGlm46, kGlm47 };
const char* ChatFamilyName(ChatFamily family);  // "glm-4.6", "glm-4.7"
// From the value of --chat-template; a UsageError lists what exists ("auto" is not a family).
StatusOr<ChatFamily> ParseChatFamily(std::string_view name);

// One conversation to render. Keys keep the order in which they were given.
struct ChatRequest {
  enum class Form {
    kTemplate,  // tool results given as lists of parts go to the template as they are
    kOpenAi,    // the text parts of a tool result are joined first
  };
  // An array of objects: role ("system", "user", "assistant", "tool"; others print nothing),
  // content (a string, null or an array of parts), and for the assistant reasoning_content and
  // tool_calls.
  JsonValue messages = JsonValue::MakeArray();
  JsonValue tools;  // an array of objects, or null
  Form form = Form::kTemplate;
  bool add_generation_prompt = true;
  // Unset is a third state, as in the template: thinking is then on, and reasoning before the last
  // user turn is dropped.
  std::optional<bool> enable_thinking;
  std::optional<bool> clear_thinking;

  // Appends {"role": role, "content": content}.
  void AddMessage(std::string_view role, std::string_view content);
  // Appends an assistant turn with its reasoning (omitted when empty).
  void AddAssistantMessage(std::string_view content, std::string_view reasoning);
};

// Reads {"messages", "tools", "form", "add_generation_prompt", "enable_thinking",
// "clear_thinking"}; null counts as absent, unknown keys and wrong kinds are RequestErrors.
StatusOr<ChatRequest> ChatRequestFromJson(const JsonValue& value);

// The prompt text, equal to what the family's Jinja template gives under transformers. Null content
// counts as "" and tool call arguments may be JSON text; both in either form. A RequestError says
// which message is at fault where the template itself fails (arguments that are no object, a tool
// call without a name...) or there is no message.
StatusOr<std::string> RenderChat(ChatFamily family, const ChatRequest& request);

// Which family a checkpoint's own template text is of.
struct ChatTemplateMatch {
  std::optional<ChatFamily> family;  // nothing: the markers are missing
  bool exact = false;                // the text is one that was seen and tested, byte for byte
  std::string digest;  // XXH3-64 of the text in hexadecimal, as `xxhsum -H3` prints it
};
ChatTemplateMatch RecognizeChatTemplate(std::string_view jinja);

}  // namespace lockstep
