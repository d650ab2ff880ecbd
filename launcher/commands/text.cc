#include "launcher/commands/text.h"

#include <functional>
#include <iostream>
#include <string>
#include <utility>

#include "launcher/commands/commands.h"
#include "runtime/base/file.h"
#include "runtime/base/gguf.h"
#include "runtime/base/log.h"
#include "runtime/text/json_value.h"
#include "runtime/text/model_text.h"
#include "runtime/text/streaming_decoder.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

using LineFunction = std::function<StatusOr<JsonValue>(const JsonValue& line)>;

JsonValue OneMember(const char* key, JsonValue value) {
  JsonValue object = JsonValue::MakeObject();
  object.Set(key, std::move(value));
  return object;
}

// One line of JSON. The three characters beyond ASCII that some readers take for line ends are
// escaped.
std::string OutputLine(const JsonValue& value) {
  std::string text = value.Dump();
  for (const auto& [character, escape] :
       {std::pair("\xC2\x85", "\\u0085"), std::pair("\xE2\x80\xA8", "\\u2028"),
        std::pair("\xE2\x80\xA9", "\\u2029")}) {
    const std::string_view wanted = character;
    if (text.find(wanted) == std::string::npos) continue;
    std::string escaped;
    size_t done = 0;
    for (size_t at = 0; (at = text.find(wanted, done)) != std::string::npos;
         done = at + wanted.size()) {
      escaped.append(text, done, at - done).append(escape);
    }
    text = escaped.append(text, done);
  }
  return text;
}

std::string ErrorLine(const Status& status) {
  return OutputLine(OneMember("error", JsonValue::String(ReplaceInvalidUtf8(MessageOf(status)))));
}

StatusOr<JsonValue> AnswerLine(const std::string& line, const LineFunction& answer) {
  if (line.find_first_not_of(" \t\r") == std::string::npos) {
    return RequestError("the line is empty; every line must be a JSON object");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue value, ParseJson(line));
  if (!value.is_object())
    return RequestError("a line must be a JSON object, not %s", value.KindName());
  return answer(value);
}

Status EachLine(std::istream& in, std::ostream& out, const LineFunction& answer) {
  int64_t lines = 0, bad = 0;
  for (std::string line; std::getline(in, line);) {
    ++lines;
    const StatusOr<JsonValue> result = AnswerLine(line, answer);
    if (!result.ok()) ++bad;
    out << (result.ok() ? OutputLine(*result) : ErrorLine(result.status())) << '\n' << std::flush;
    if (!out)
      return InternalError(
          "writing the answer to line %d failed; is the output closed or the disk full?", lines);
  }
  if (bad > 0)
    return UsageError("%d of %d input lines were bad; each has its {\"error\"} line in the output",
                      bad, lines);
  return OkStatus();
}

Status RefuseOtherKeys(const JsonValue& line, std::initializer_list<std::string_view> known) {
  for (const JsonMember& member : line.AsObject()) {
    bool found = false;
    std::string names;
    for (std::string_view name : known) {
      found = found || member.key == name;
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    if (!found) return RequestError("unknown key \"%s\"; known: %s", member.key, names);
  }
  return OkStatus();
}

StatusOr<bool> Flag(const JsonValue& line, const char* key) {
  const JsonValue* value = line.Find(key);
  if (value == nullptr || value->is_null()) return false;
  if (!value->is_bool())
    return RequestError("%s must be true or false, not %s", key, value->KindName());
  return value->AsBool();
}

StatusOr<std::vector<int32_t>> ReadIds(const Tokenizer& tokenizer, const JsonValue& line) {
  const JsonValue* value = line.Find("ids");
  if (value == nullptr || !value->is_array())
    return RequestError("ids is missing or not an array of token ids");
  std::vector<int32_t> ids;
  ids.reserve(value->AsArray().size());
  for (const JsonValue& item : value->AsArray()) {
    const std::optional<int64_t> id = item.ToInt64();
    if (!id || *id < 0 || *id >= tokenizer.vocab_size() ||
        !tokenizer.HasToken(static_cast<int32_t>(*id))) {
      return RequestError("ids[%d]: %s is not the id of a token (they end at %d)", ids.size(),
                          item.Dump().substr(0, 40), tokenizer.vocab_size() - 1);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

StatusOr<JsonValue> TokenizeLine(const Tokenizer& tokenizer, const JsonValue& line) {
  LOCKSTEP_RETURN_IF_ERROR(RefuseOtherKeys(line, {"text"}));
  const JsonValue* text = line.Find("text");
  if (text == nullptr || !text->is_string()) return RequestError("text is missing or not a string");
  JsonValue::Array ids;
  for (int32_t id : tokenizer.Encode(text->AsString())) ids.push_back(JsonValue::Int(id));
  return OneMember("ids", JsonValue::MakeArray(std::move(ids)));
}

StatusOr<JsonValue> DetokenizeLine(const Tokenizer& tokenizer, const JsonValue& line) {
  LOCKSTEP_RETURN_IF_ERROR(RefuseOtherKeys(line, {"ids", "skip_special", "stream"}));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadIds(tokenizer, line));
  LOCKSTEP_ASSIGN_OR_RETURN(const bool skip_special, Flag(line, "skip_special"));
  LOCKSTEP_ASSIGN_OR_RETURN(const bool stream, Flag(line, "stream"));
  if (!stream) return OneMember("text", JsonValue::String(tokenizer.Decode(ids, skip_special)));
  StreamingDecoder decoder(tokenizer, skip_special);
  JsonValue::Array pieces;
  for (int32_t id : ids) {
    std::optional<std::string> piece = decoder.Push(id);
    pieces.push_back(piece ? JsonValue::String(*std::move(piece)) : JsonValue());
  }
  JsonValue answer = OneMember("pieces", JsonValue::MakeArray(std::move(pieces)));
  if (std::string rest = decoder.Finish(); !rest.empty())
    answer.Set("rest", JsonValue::String(std::move(rest)));
  return answer;
}

StatusOr<JsonValue> RenderLine(ChatFamily family, const JsonValue& line) {
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest request, ChatRequestFromJson(line));
  LOCKSTEP_ASSIGN_OR_RETURN(std::string text, RenderChat(family, request));
  return OneMember("text", JsonValue::String(std::move(text)));
}

StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const Options& options) {
  if (options.model.empty()) {
    return UsageError("--model PATH is needed: the directory with tokenizer.json, or a .gguf file");
  }
  return LoadTokenizer(options.model);
}

}  // namespace

Status TokenizeLines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out) {
  return EachLine(in, out, [&](const JsonValue& line) { return TokenizeLine(tokenizer, line); });
}

Status DetokenizeLines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out) {
  return EachLine(in, out, [&](const JsonValue& line) { return DetokenizeLine(tokenizer, line); });
}

Status RenderLines(ChatFamily family, std::istream& in, std::ostream& out) {
  return EachLine(in, out, [&](const JsonValue& line) { return RenderLine(family, line); });
}

Status TokenizeCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerOf(options));
  return TokenizeLines(*tokenizer, std::cin, std::cout);
}

Status DetokenizeCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerOf(options));
  return DetokenizeLines(*tokenizer, std::cin, std::cout);
}

Status RenderCommand(const Options& options) {
  if (options.model.empty() && options.chat_template == "auto") {
    return UsageError(
        "--model PATH is needed to know the chat template; or give --chat-template glm-4.6 or "
        "glm-4.7");
  }
  if (options.chat_template == "auto" && !IsDirectory(options.model) &&
      !IsGgufModel(options.model)) {
    return ModelError(
        "--model %s is not a directory; give the checkpoint's directory or its .gguf file",
        options.model);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatFamilyChoice choice,
                            ChooseChatFamily(options.model, options.chat_template));
  if (!choice.family) return UsageError("%s", choice.warning);
  if (!choice.warning.empty()) log::Warning("%s", choice.warning);
  return RenderLines(*choice.family, std::cin, std::cout);
}

}  // namespace lockstep
