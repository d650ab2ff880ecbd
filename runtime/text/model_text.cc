#include "runtime/text/model_text.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "runtime/base/file.h"
#include "runtime/base/gguf.h"
#include "runtime/text/json_value.h"

namespace lockstep {
namespace {

constexpr uint64_t kConfigLimitBytes = uint64_t{16} << 20;
constexpr const char* kRawRemedy =
    "use --raw for plain completion, or --chat-template glm-4.6 or glm-4.7 if you know the family";

// The object in a JSON file; null where there is no such file.
StatusOr<JsonValue> ReadObject(const std::string& path) {
  if (!FileExists(path)) return JsonValue();
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text,
                            ReadTextFile(path, kConfigLimitBytes, ErrorKind::kModel));
  StatusOr<JsonValue> value = ParseJson(text);
  if (!value.ok()) return ModelError("%s: %s; restore the file", path, MessageOf(value.status()));
  if (!value->is_object())
    return ModelError("%s: must be an object, not %s; restore the file", path, value->KindName());
  return value;
}

// A number with bounds; absent and null leave `out` unset.
Status ReadNumber(const JsonValue& config, const std::string& path, const char* key, double lowest,
                  double highest, std::optional<double>* out) {
  const JsonValue* value = config.Find(key);
  if (value == nullptr || value->is_null()) return OkStatus();
  const std::optional<double> number = value->ToDouble();
  if (!number || !std::isfinite(*number) || *number < lowest || *number > highest) {
    return ModelError("%s: %s must be a number from %g to %g, not %s; correct or remove the key",
                      path, key, lowest, highest, value->Dump().substr(0, 60));
  }
  *out = *number;
  return OkStatus();
}

Status ReadTokenId(const JsonValue& value, const std::string& path, const char* key, int32_t* id) {
  const std::optional<int64_t> number = value.ToInt64();
  if (!number || *number < 0 || *number > INT32_MAX) {
    return ModelError("%s: %s must hold token ids (integers from 0), not %s; correct the key", path,
                      key, value.Dump().substr(0, 60));
  }
  *id = static_cast<int32_t>(*number);
  return OkStatus();
}

void SortUnique(std::vector<int32_t>* ids) {
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
}

// One id or a list of them.
Status ReadTokenIds(const JsonValue& config, const std::string& path, const char* key,
                    std::vector<int32_t>* ids) {
  const JsonValue* value = config.Find(key);
  if (value == nullptr || value->is_null()) return OkStatus();
  const JsonValue::Array single = {*value};
  for (const JsonValue& item : value->is_array() ? value->AsArray() : single) {
    int32_t id = 0;
    LOCKSTEP_RETURN_IF_ERROR(ReadTokenId(item, path, key, &id));
    ids->push_back(id);
  }
  SortUnique(ids);
  return OkStatus();
}

// The template's text: its own file, or the key in tokenizer_config.json (a string, or a list of
// named ones of which "default" counts). Nothing where the checkpoint has none.
StatusOr<std::optional<std::string>> ReadTemplate(const std::string& directory) {
  const std::string own = directory + "/chat_template.jinja";
  if (FileExists(own)) {
    LOCKSTEP_ASSIGN_OR_RETURN(std::string text,
                              ReadTextFile(own, kConfigLimitBytes, ErrorKind::kModel));
    return std::optional<std::string>(std::move(text));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue config,
                            ReadObject(directory + "/tokenizer_config.json"));
  const JsonValue* value = config.Find("chat_template");
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_string()) return std::optional<std::string>(value->AsString());
  if (!value->is_array()) return std::optional<std::string>();
  for (const JsonValue& item : value->AsArray()) {
    const JsonValue *name = item.Find("name"), *text = item.Find("template");
    if (name != nullptr && text != nullptr && text->is_string() &&
        *name == JsonValue::String("default")) {
      return std::optional<std::string>(text->AsString());
    }
  }
  return std::optional<std::string>();
}

Status CheckStopTokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                       const std::string& path) {
  for (int32_t id : ids) {
    if (!tokenizer.HasToken(id)) {
      return ModelError(
          "%s: eos_token_id %d has no token in the tokenizer (ids end at %d); these files do not "
          "belong together",
          path, id, tokenizer.vocab_size() - 1);
    }
  }
  return OkStatus();
}

// `text`: the template, or nullptr. `where`: what would hold it.
ChatFamilyChoice ChooseByTemplate(const std::string* text, const std::string& model,
                                  const char* where) {
  ChatFamilyChoice choice;
  if (text == nullptr) {
    choice.warning = absl::StrFormat(
        "%s has no chat template (%s), so only raw completion works: %s", model, where, kRawRemedy);
    return choice;
  }
  const ChatTemplateMatch match = RecognizeChatTemplate(*text);
  choice.family = match.family;
  if (!match.family) {
    choice.warning = absl::StrFormat(
        "the chat template of %s (XXH3 %s) is not one of GLM-4.6 or GLM-4.7, so only raw "
        "completion works: %s",
        model, match.digest, kRawRemedy);
  } else if (!match.exact) {
    choice.warning = absl::StrFormat(
        "the chat template of %s (XXH3 %s) is not a text that lockstep was tested with; it is "
        "taken for %s by its markers and may differ in detail: compare `lockstep render`, or "
        "choose with --chat-template",
        model, match.digest, ChatFamilyName(*match.family));
  }
  return choice;
}

ChatFamilyChoice ChooseFromGguf(const Gguf& gguf) {
  return ChooseByTemplate(gguf.Text("tokenizer.chat_template"), gguf.files[0]->path(),
                          "tokenizer.chat_template");
}

// The tokenizer of a GGUF model: its own, or else tokenizer.json beside it.
StatusOr<std::unique_ptr<Tokenizer>> TokenizerOfGguf(const Gguf& gguf) {
  const std::string& path = gguf.files[0]->path();
  const Status known = Tokenizer::CheckGguf(gguf, path);
  if (known.ok()) return Tokenizer::FromGguf(gguf, path);
  const std::filesystem::path beside = std::filesystem::path(path).parent_path() / "tokenizer.json";
  if (FileExists(beside.string())) return Tokenizer::Load(beside.string());
  return known;
}

Status ReadSampling(const Gguf& gguf, const char* name, double lowest, double highest,
                    std::optional<double>* out) {
  const std::string key = std::string("general.sampling.") + name;
  const int64_t* whole = gguf.Integer(key);
  const double* value = gguf.Number(key);
  const double number = whole != nullptr ? static_cast<double>(*whole) : value ? *value : 0;
  if (whole == nullptr && value == nullptr) return OkStatus();
  // Float32 in the file: 0.95 and not 0.949999988.
  const double rounded = std::round(number * 1e6) / 1e6;
  if (!std::isfinite(rounded) || rounded < lowest || rounded > highest) {
    return ModelError("%s: %s is %g, outside %g to %g; convert the checkpoint again",
                      gguf.files[0]->path(), key, number, lowest, highest);
  }
  *out = rounded;
  return OkStatus();
}

// Names the keys that are there but of a kind that says nothing.
std::string WarnOfKinds(const Gguf& gguf) {
  std::string keys;
  const auto look = [&](const std::string& key, bool is_usable) {
    if (gguf.metadata.contains(key) && !is_usable) keys += (keys.empty() ? "" : ", ") + key;
  };
  for (const char* name : {"temp", "top_p", "min_p", "penalty_repeat"}) {
    const std::string key = std::string("general.sampling.") + name;
    look(key, gguf.Number(key) != nullptr || gguf.Integer(key) != nullptr);
  }
  const std::string top_k = "general.sampling.top_k";
  look(top_k, gguf.Integer(top_k) != nullptr);
  for (const char* name : {"eos", "eot", "eom", "padding"}) {
    const std::string key = absl::StrFormat("tokenizer.ggml.%s_token_id", name);
    look(key, gguf.Integer(key) != nullptr);
  }
  if (keys.empty()) return keys;
  return absl::StrFormat("%s: not numbers as they should be, and left out: %s",
                         gguf.files[0]->path(), keys);
}

StatusOr<GenerationDefaults> GenerationOfGguf(const Gguf& gguf) {
  const std::string& path = gguf.files[0]->path();
  GenerationDefaults defaults;
  defaults.warning = WarnOfKinds(gguf);
  LOCKSTEP_RETURN_IF_ERROR(ReadSampling(gguf, "temp", 0, 100, &defaults.temperature));
  LOCKSTEP_RETURN_IF_ERROR(ReadSampling(gguf, "top_p", 1e-6, 1, &defaults.top_p));
  LOCKSTEP_RETURN_IF_ERROR(ReadSampling(gguf, "min_p", 0, 1, &defaults.min_p));
  LOCKSTEP_RETURN_IF_ERROR(
      ReadSampling(gguf, "penalty_repeat", 0.01, 100, &defaults.repetition_penalty));
  if (const int64_t* top_k = gguf.Integer("general.sampling.top_k"); top_k != nullptr) {
    if (*top_k < -1 || *top_k > 1'000'000) {
      return ModelError("%s: general.sampling.top_k is %d, outside 0 to 1000000", path, *top_k);
    }
    defaults.top_k = std::max<int64_t>(*top_k, 0);
  }
  const auto read_id = [&](const char* name, std::optional<int32_t>* out) {
    const std::string key = absl::StrFormat("tokenizer.ggml.%s_token_id", name);
    const int64_t* id = gguf.Integer(key);
    if (id == nullptr) return OkStatus();
    if (*id < 0 || *id > INT32_MAX) return ModelError("%s: %s is %d, no token id", path, key, *id);
    *out = static_cast<int32_t>(*id);
    return OkStatus();
  };
  for (const char* name : {"eos", "eot", "eom"}) {
    std::optional<int32_t> id;
    LOCKSTEP_RETURN_IF_ERROR(read_id(name, &id));
    if (id) defaults.eos_token_ids.push_back(*id);
  }
  SortUnique(&defaults.eos_token_ids);
  LOCKSTEP_RETURN_IF_ERROR(read_id("padding", &defaults.pad_token_id));
  return defaults;
}

// With the stop tokens that `source` names, and those of the chat family.
Status AddStopTokens(const std::string& source, ModelText* text) {
  LOCKSTEP_RETURN_IF_ERROR(CheckStopTokens(*text->tokenizer, text->stop_token_ids, source));
  if (text->chat_family) {
    for (const char* token : {"<|endoftext|>", "<|user|>", "<|observation|>"}) {
      const std::optional<int32_t> id = text->tokenizer->IdOf(token);
      if (id && text->tokenizer->IsAdded(*id)) text->stop_token_ids.push_back(*id);
    }
  }
  SortUnique(&text->stop_token_ids);
  return OkStatus();
}

StatusOr<ModelText> TextOfGguf(const std::string& model, const std::string& chat_template) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Gguf gguf, OpenGgufFiles(model));
  ModelText text;
  text.directory = gguf.files[0]->path();
  LOCKSTEP_ASSIGN_OR_RETURN(text.tokenizer, TokenizerOfGguf(gguf));
  ChatFamilyChoice choice;
  if (chat_template == "auto") {
    choice = ChooseFromGguf(gguf);
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(choice.family, ParseChatFamily(chat_template));
  }
  text.chat_family = choice.family;
  text.chat_warning = std::move(choice.warning);
  LOCKSTEP_ASSIGN_OR_RETURN(text.generation, GenerationOfGguf(gguf));
  text.stop_token_ids = text.generation.eos_token_ids;
  LOCKSTEP_RETURN_IF_ERROR(AddStopTokens(text.directory, &text));
  return text;
}

}  // namespace

StatusOr<ChatFamily> ModelText::RequireChatFamily() const {
  if (chat_family) return *chat_family;
  return UsageError("%s", chat_warning);
}

StatusOr<ChatFamilyChoice> ChooseChatFamily(const std::string& model,
                                            const std::string& chat_template) {
  if (chat_template != "auto") {
    ChatFamilyChoice choice;
    LOCKSTEP_ASSIGN_OR_RETURN(choice.family, ParseChatFamily(chat_template));
    return choice;
  }
  if (IsGgufModel(model)) {
    LOCKSTEP_ASSIGN_OR_RETURN(const Gguf gguf, OpenGgufFiles(model));
    return ChooseFromGguf(gguf);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadTemplate(model));
  return ChooseByTemplate(text ? &*text : nullptr, model,
                          "chat_template.jinja, or the key in tokenizer_config.json");
}

StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& directory) {
  const std::string path = directory + "/generation_config.json";
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue config, ReadObject(path));
  GenerationDefaults defaults;
  if (const JsonValue* value = config.Find("do_sample"); value != nullptr && !value->is_null()) {
    if (!value->is_bool()) {
      return ModelError("%s: do_sample must be true or false, not %s; correct the key", path,
                        value->KindName());
    }
    defaults.do_sample = value->AsBool();
  }
  LOCKSTEP_RETURN_IF_ERROR(ReadNumber(config, path, "temperature", 0, 100, &defaults.temperature));
  LOCKSTEP_RETURN_IF_ERROR(ReadNumber(config, path, "top_p", 1e-9, 1, &defaults.top_p));
  LOCKSTEP_RETURN_IF_ERROR(ReadNumber(config, path, "min_p", 0, 1, &defaults.min_p));
  LOCKSTEP_RETURN_IF_ERROR(
      ReadNumber(config, path, "repetition_penalty", 0.01, 100, &defaults.repetition_penalty));
  if (const JsonValue* value = config.Find("top_k"); value != nullptr && !value->is_null()) {
    const std::optional<int64_t> top_k = value->ToInt64();
    if (!top_k || *top_k < -1 || *top_k > 1'000'000) {
      return ModelError(
          "%s: top_k must be an integer from 0 (off) to 1000000, not %s; correct or remove the key",
          path, value->Dump().substr(0, 60));
    }
    defaults.top_k = std::max<int64_t>(*top_k, 0);  // -1 is another spelling of off
  }
  LOCKSTEP_RETURN_IF_ERROR(ReadTokenIds(config, path, "eos_token_id", &defaults.eos_token_ids));
  if (const JsonValue* value = config.Find("pad_token_id"); value != nullptr && !value->is_null()) {
    int32_t id = 0;
    LOCKSTEP_RETURN_IF_ERROR(ReadTokenId(*value, path, "pad_token_id", &id));
    defaults.pad_token_id = id;
  }
  return defaults;
}

StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model) {
  if (!IsGgufModel(model)) return Tokenizer::Load(model + "/tokenizer.json");
  LOCKSTEP_ASSIGN_OR_RETURN(const Gguf gguf, OpenGgufFiles(model));
  return TokenizerOfGguf(gguf);
}

StatusOr<ModelText> LoadModelText(const std::string& model, const std::string& chat_template) {
  if (IsGgufModel(model)) return TextOfGguf(model, chat_template);
  ModelText text;
  text.directory = model;
  LOCKSTEP_ASSIGN_OR_RETURN(text.tokenizer, Tokenizer::Load(model + "/tokenizer.json"));
  LOCKSTEP_ASSIGN_OR_RETURN(ChatFamilyChoice choice, ChooseChatFamily(model, chat_template));
  text.chat_family = choice.family;
  text.chat_warning = std::move(choice.warning);
  LOCKSTEP_ASSIGN_OR_RETURN(text.generation, LoadGenerationDefaults(model));
  std::string source = model + "/generation_config.json";
  text.stop_token_ids = text.generation.eos_token_ids;
  if (text.stop_token_ids.empty()) {
    source = model + "/config.json";
    LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue config, ReadObject(source));
    LOCKSTEP_RETURN_IF_ERROR(ReadTokenIds(config, source, "eos_token_id", &text.stop_token_ids));
  }
  LOCKSTEP_RETURN_IF_ERROR(AddStopTokens(source, &text));
  return text;
}

}  // namespace lockstep
