#include "runtime/text/reply_parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "runtime/text/python_literal.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";
constexpr std::string_view kCallOpen = "<tool_call>";
constexpr std::string_view kCallClose = "</tool_call>";
constexpr std::string_view kKeyOpen = "<arg_key>";
constexpr std::string_view kKeyClose = "</arg_key>";
constexpr std::string_view kValueOpen = "<arg_value>";
constexpr std::string_view kValueClose = "</arg_value>";
constexpr std::string_view kSpaces = " \t\r\n\f\v";

struct TagHit {
  size_t at = std::string_view::npos;
  std::string_view tag;  // empty: none is complete
};

// The first complete tag at or after `from`. Every tag begins with '<', so one pass is enough.
TagHit FindTag(std::string_view text, size_t from, std::initializer_list<std::string_view> tags) {
  for (size_t at = text.find('<', from); at != std::string_view::npos;
       at = text.find('<', at + 1)) {
    for (std::string_view tag : tags) {
      if (text.substr(at).starts_with(tag)) return {at, tag};
    }
  }
  return {};
}

// How many bytes at the end of `text` may be the beginning of one of `tags`.
size_t PartialTag(std::string_view text, std::initializer_list<std::string_view> tags) {
  size_t longest = 0;
  for (std::string_view tag : tags) {
    for (size_t length = std::min(tag.size() - 1, text.size()); length > longest; --length) {
      if (text.ends_with(tag.substr(0, length))) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

// Whether the tool's own schema says that the argument is a string.
bool IsStringArgument(const JsonValue& tools, std::string_view name, std::string_view key) {
  if (!tools.is_array()) return false;
  for (const JsonValue& tool : tools.AsArray()) {
    const JsonValue* inner = tool.Find("function");
    const JsonValue& function = inner != nullptr && inner->is_object() ? *inner : tool;
    const JsonValue* tool_name = function.Find("name");
    if (tool_name == nullptr || !tool_name->is_string() || tool_name->AsString() != name) continue;
    const JsonValue* at = &function;
    for (std::string_view step : {std::string_view("parameters"), std::string_view("properties"),
                                  key, std::string_view("type")}) {
      at = at->Find(step);
      if (at == nullptr) return false;
    }
    return at->is_string() && at->AsString() == "string";
  }
  return false;
}

JsonValue TypedArgument(const JsonValue& tools, std::string_view name, std::string_view key,
                        std::string_view text) {
  if (IsStringArgument(tools, name, key)) return JsonValue::String(std::string(text));
  const std::string_view stripped = PythonStrip(text);
  if (StatusOr<JsonValue> json = ParseJson(stripped); json.ok()) return *std::move(json);
  if (std::optional<JsonValue> literal = ParsePythonLiteral(stripped)) return *std::move(literal);
  return JsonValue::String(std::string(stripped));
}

}  // namespace

struct ReplyParser::Impl {
  enum class State { kUndecided, kThinking, kContent, kName, kBetween, kKey, kBeforeValue, kValue };

  State state = State::kContent;
  JsonValue tools;
  std::string buffer;  // from `head` on: not yet interpreted
  size_t head = 0;
  size_t searched = 0;   // so many bytes behind `head` hold no tag of this state
  std::string spaces;    // content that so far is only whitespace
  bool in_text = false;  // this stretch of content has had more than whitespace
  bool any_call = false;
  std::string raw_call;  // the open call as it was written
  std::string name, key;
  JsonValue arguments;
  std::vector<ReplyEvent> events;

  void Emit(ReplyEvent::Kind kind, std::string_view text) {
    if (text.empty()) return;
    if (!events.empty() && events.back().kind == kind) {
      events.back().text += text;
    } else {
      events.push_back({kind, std::string(text), {}, {}});
    }
  }

  // Content is held back while it is only whitespace: beside a call it is layout.
  void EmitContent(std::string_view text) {
    if (!in_text) {
      const size_t first = text.find_first_not_of(kSpaces);
      if (first == std::string_view::npos) {
        spaces += text;
        return;
      }
      in_text = true;
      Emit(ReplyEvent::Kind::kContent, std::exchange(spaces, {}));
    }
    Emit(ReplyEvent::Kind::kContent, text);
  }

  void StartContent() {
    state = State::kContent;
    in_text = false;
    spaces.clear();
  }

  void StartCall() {
    state = State::kName;
    raw_call = kCallOpen;
    name.clear();
    arguments = JsonValue::MakeObject();
  }

  void EndCall() {
    ReplyEvent event;
    event.kind = ReplyEvent::Kind::kToolCall;
    event.name = std::exchange(name, {});
    event.arguments = std::exchange(arguments, {});
    events.push_back(std::move(event));
    any_call = true;
    raw_call.clear();
    StartContent();
  }

  std::string_view Rest() const { return std::string_view(buffer).substr(head); }
  // Consumes the first `count` bytes; the view holds until the next Push.
  std::string_view Take(size_t count) {
    const std::string_view taken = Rest().substr(0, count);
    head += taken.size();
    searched = 0;
    return taken;
  }
  // Within a call: the text before the tag, which goes with the tag into raw_call.
  std::string_view TakeUntil(const TagHit& hit) {
    raw_call += Rest().substr(0, hit.at + hit.tag.size());
    const std::string_view before = Take(hit.at);
    Take(hit.tag.size());
    return before;
  }

  // One step; false when more text is needed.
  bool Step();
  bool StepUndecided();
  bool StepThinking();
  bool StepContent();
  bool StepCall();
};

bool ReplyParser::Impl::Step() {
  if (Rest().empty()) return false;
  switch (state) {
    case State::kUndecided:
      return StepUndecided();
    case State::kThinking:
      return StepThinking();
    case State::kContent:
      return StepContent();
    default:
      return StepCall();
  }
}

bool ReplyParser::Impl::StepUndecided() {
  const size_t first = Rest().find_first_not_of(kSpaces);
  if (first == std::string_view::npos) return false;
  const std::string_view rest = Rest().substr(first);
  if (rest.starts_with(kThinkOpen)) {
    Take(first + kThinkOpen.size());
    // A marker that there was reasoning, even if none follows.
    events.push_back({ReplyEvent::Kind::kReasoning, {}, {}, {}});
    state = State::kThinking;
    return true;
  }
  if (kThinkOpen.starts_with(rest)) return false;
  StartContent();
  return true;
}

bool ReplyParser::Impl::StepThinking() {
  const auto tags = {kThinkOpen, kThinkClose, kCallOpen};
  const TagHit hit = FindTag(Rest(), 0, tags);
  if (hit.tag.empty()) {
    const size_t ready = Rest().size() - PartialTag(Rest(), tags);
    Emit(ReplyEvent::Kind::kReasoning, Take(ready));
    return false;
  }
  Emit(ReplyEvent::Kind::kReasoning, Take(hit.at));
  Take(hit.tag.size());
  if (hit.tag == kThinkClose) StartContent();
  if (hit.tag == kCallOpen) StartCall();
  return true;
}

bool ReplyParser::Impl::StepContent() {
  const auto tags = {kCallOpen};
  const TagHit hit = FindTag(Rest(), 0, tags);
  if (hit.tag.empty()) {
    const size_t ready = Rest().size() - PartialTag(Rest(), tags);
    EmitContent(Take(ready));
    return false;
  }
  EmitContent(Take(hit.at));
  Take(hit.tag.size());
  StartCall();
  return true;
}

bool ReplyParser::Impl::StepCall() {
  TagHit hit;
  if (state == State::kKey) {
    hit = FindTag(Rest(), searched, {kKeyClose});
  } else if (state == State::kBeforeValue) {
    hit = FindTag(Rest(), searched, {kValueOpen, kKeyOpen, kCallClose});
  } else if (state == State::kValue) {
    hit = FindTag(Rest(), searched, {kValueClose});
  } else {
    hit = FindTag(Rest(), searched, {kKeyOpen, kCallClose});
  }
  if (hit.tag.empty()) {
    searched = Rest().size() -
               std::min(Rest().size(), kValueClose.size() - 1);  // the longest tag, but for a byte
    return false;
  }
  const std::string_view before = TakeUntil(hit);
  if (state == State::kName) name = PythonStrip(before);
  if (state == State::kValue) {
    arguments.Set(key, TypedArgument(tools, name, key, before));
    state = State::kBetween;
  } else if (state == State::kKey) {
    key = PythonStrip(before);
    state = State::kBeforeValue;
  } else if (hit.tag == kKeyOpen) {
    state = State::kKey;
  } else if (hit.tag == kValueOpen) {
    state = State::kValue;
  } else {
    EndCall();
  }
  return true;
}

ReplyStart ReplyStartOf(std::string_view prompt) {
  if (prompt.ends_with(kThinkOpen)) return ReplyStart::kThinking;
  return prompt.ends_with(kThinkClose) ? ReplyStart::kContent : ReplyStart::kUndecided;
}

ReplyParser::ReplyParser(ReplyStart start, const JsonValue& tools)
    : impl_(std::make_unique<Impl>()) {
  impl_->tools = tools;
  impl_->state = start == ReplyStart::kThinking  ? Impl::State::kThinking
                 : start == ReplyStart::kContent ? Impl::State::kContent
                                                 : Impl::State::kUndecided;
}
ReplyParser::~ReplyParser() = default;
ReplyParser::ReplyParser(ReplyParser&&) noexcept = default;
ReplyParser& ReplyParser::operator=(ReplyParser&&) noexcept = default;

std::vector<ReplyEvent> ReplyParser::Push(std::string_view text) {
  impl_->buffer += text;
  while (impl_->Step()) {
  }
  impl_->buffer.erase(0, std::exchange(impl_->head, 0));
  return std::exchange(impl_->events, {});
}

std::vector<ReplyEvent> ReplyParser::Finish() {
  Impl& impl = *impl_;
  if (impl.state == Impl::State::kUndecided) impl.StartContent();
  std::string rest = std::exchange(impl.buffer, {});
  if (impl.state == Impl::State::kThinking) {
    impl.Emit(ReplyEvent::Kind::kReasoning, rest);
  } else {
    // A call that was cut off is no call: its text is shown rather than lost or acted on.
    if (impl.state != Impl::State::kContent) rest = std::exchange(impl.raw_call, {}) + rest;
    impl.EmitContent(rest);
    if (!impl.any_call) impl.Emit(ReplyEvent::Kind::kContent, std::exchange(impl.spaces, {}));
  }
  return std::exchange(impl.events, {});
}

ParsedReply ParseReply(std::string_view text, ReplyStart start, const JsonValue& tools) {
  ParsedReply reply;
  reply.thought = start == ReplyStart::kThinking;
  ReplyParser parser(start, tools);
  std::vector<ReplyEvent> events = parser.Push(text);
  std::vector<ReplyEvent> last = parser.Finish();
  events.insert(events.end(), std::make_move_iterator(last.begin()),
                std::make_move_iterator(last.end()));
  for (ReplyEvent& event : events) {
    switch (event.kind) {
      case ReplyEvent::Kind::kReasoning:
        reply.thought = true;
        reply.reasoning += event.text;
        break;
      case ReplyEvent::Kind::kContent:
        reply.content += event.text;
        break;
      case ReplyEvent::Kind::kToolCall:
        reply.tool_calls.push_back({std::move(event.name), std::move(event.arguments)});
        break;
    }
  }
  return reply;
}

}  // namespace lockstep
