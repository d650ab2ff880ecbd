// Splits a model's reply, as it streams, into reasoning, content and tool calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_value.h"

namespace lockstep {

// In which state a rendered prompt leaves the reply.
enum class ReplyStart {
  kThinking,   // the prompt ends in <think>
  kContent,    // the prompt ends in </think>: thinking is off
  kUndecided,  // GLM-4.6 with thinking on: the model writes its own <think>, or none
};
ReplyStart ReplyStartOf(std::string_view prompt);

struct ReplyEvent {
  enum class Kind {
    kReasoning,  // text: more reasoning
    kContent,    // text: more of the answer
    kToolCall,   // name, arguments: one whole call
  };
  Kind kind = Kind::kContent;
  std::string text;
  std::string name;
  JsonValue arguments;  // an object
};

// Feeds on decoded text in pieces of any size; the events, with neighbours of one kind joined, do
// not depend on how the text was cut. Text that might be the beginning of a tag is held back until
// that is decided.
//
//   reply = [reasoning </think>] content? ( <tool_call> name ( <arg_key>k</arg_key>
//   <arg_value>v</arg_value> )*
//           </tool_call> )*
//
// A tool call while reasoning ends the reasoning. Content that is only whitespace beside tool calls
// is dropped. A value is the text itself if the tool's schema says "string"; otherwise it is read
// as JSON, else as a Python literal, else it is the text. A call that is cut off (the reply ran out
// of tokens) is no call: its text comes as content, so that nothing is lost and nothing half is
// acted on. Time is linear in the text. Not thread-safe.
class ReplyParser {
 public:
  // `tools` is the request's list (or null): it types the arguments.
  ReplyParser(ReplyStart start, const JsonValue& tools);
  ~ReplyParser();
  ReplyParser(ReplyParser&&) noexcept;
  ReplyParser& operator=(ReplyParser&&) noexcept;

  // Events of this piece, in order; often none.
  std::vector<ReplyEvent> Push(std::string_view text);
  // What was held back. The parser must not be used after it.
  std::vector<ReplyEvent> Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A whole reply at once.
struct ParsedReply {
  struct ToolCall {
    std::string name;
    JsonValue arguments;
  };
  bool thought = false;  // there was a reasoning part, perhaps empty
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;
};
ParsedReply ParseReply(std::string_view text, ReplyStart start, const JsonValue& tools);

}  // namespace lockstep
