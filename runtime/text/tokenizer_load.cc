// Reading tokenizer.json: everything is checked, and what would not be followed exactly is refused.
#include <utility>

#include "runtime/base/file.h"
#include "runtime/text/json_value.h"
#include "runtime/text/tokenizer_data.h"

namespace lockstep {
namespace {

constexpr const char* kGpt2Split =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kRemedy =
    "use the tokenizer.json that belongs to the checkpoint, or download it again";

class Loader {
 public:
  explicit Loader(std::string name) : name_(std::move(name)) {}

  StatusOr<std::unique_ptr<TokenizerData>> Load(const JsonValue& root);

 private:
  // "FILE: key KEY: what; remedy."
  template <typename... Args>
  Status Bad(const std::string& key, const Format<Args...>& format, const Args&... args) const {
    return ModelError("%s: %s: %s; %s", name_, key, absl::StrFormat(format, args...), kRemedy);
  }
  // What the file asks for exists in Hugging Face tokenizers but not here.
  Status Unsupported(const std::string& key, const std::string& what) const {
    return ModelError(
        "%s: %s: %s is not supported, and ignoring it would give wrong tokens; GLM checkpoints "
        "do not have it: use a byte-level BPE tokenizer.json without it",
        name_, key, what);
  }
  std::string TypeOf(const JsonValue& value) const {
    const JsonValue* type = value.Find("type");
    return type != nullptr && type->is_string() ? type->AsString() : std::string("(no type)");
  }
  // A boolean that is false when absent.
  StatusOr<bool> Flag(const JsonValue& object, const char* key, const std::string& where) const {
    const JsonValue* value = object.Find(key);
    if (value == nullptr || value->is_null()) return false;
    if (!value->is_bool())
      return Bad(where + "." + key, "must be a boolean, not %s", value->KindName());
    return value->AsBool();
  }

  Status CheckNormalizer(const JsonValue* normalizer) const;
  Status CheckByteLevel(const JsonValue* value, const std::string& key, bool may_be_absent) const;
  Status CheckModel(const JsonValue& model) const;
  Status AddToken(int64_t id, const std::string& text, const std::string& key);
  Status LoadVocabulary(const JsonValue& model);
  Status LoadMerges(const JsonValue& model);
  StatusOr<std::pair<std::string, std::string>> ReadMerge(const JsonValue& merge,
                                                          const std::string& key) const;
  Status LoadAddedTokens(const JsonValue* added);
  Status LoadAddedToken(const JsonValue& added, const std::string& key);
  Status LoadPreTokenizer(const JsonValue* value, const std::string& key, bool* byte_level);
  Status LoadSplit(const JsonValue& split, const std::string& key);

  std::string name_;
  std::unique_ptr<TokenizerData> data_ = std::make_unique<TokenizerData>();
};

Status Loader::CheckNormalizer(const JsonValue* normalizer) const {
  if (normalizer == nullptr || normalizer->is_null()) return OkStatus();
  const JsonValue* list = normalizer->Find("normalizers");
  if (TypeOf(*normalizer) == "Sequence" && list != nullptr && list->is_array() &&
      list->AsArray().empty()) {
    return OkStatus();
  }
  return Unsupported("normalizer", "normalizer " + TypeOf(*normalizer));
}

// A decoder or post-processor of type ByteLevel, alone or as a sequence of such.
Status Loader::CheckByteLevel(const JsonValue* value, const std::string& key,
                              bool may_be_absent) const {
  if (value == nullptr || value->is_null()) {
    if (may_be_absent) return OkStatus();
    return Bad(key, "must be ByteLevel, but is absent");
  }
  const std::string type = TypeOf(*value);
  if (type == "ByteLevel") return OkStatus();
  const JsonValue* list = value->Find(key == "decoder" ? "decoders" : "processors");
  if (type == "Sequence" && list != nullptr && list->is_array() && list->AsArray().size() == 1) {
    return CheckByteLevel(&list->AsArray()[0], key, false);
  }
  return Unsupported(key, key + " " + type);
}

Status Loader::CheckModel(const JsonValue& model) const {
  const JsonValue* type = model.Find("type");
  if (type != nullptr && TypeOf(model) != "BPE")
    return Unsupported("model.type", "model " + TypeOf(model));
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonValue* value = model.Find(key);
    // An empty prefix or suffix adds nothing, dropout 0 drops nothing.
    if (value != nullptr && value->Truthy()) return Unsupported(std::string("model.") + key, key);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const bool byte_fallback, Flag(model, "byte_fallback", "model"));
  if (byte_fallback) return Unsupported("model.byte_fallback", "byte fallback");
  return OkStatus();
}

Status Loader::AddToken(int64_t id, const std::string& text, const std::string& key) {
  const std::string wrong = data_->AddToken(id, text);
  return wrong.empty() ? OkStatus() : Bad(key, "%s", wrong);
}

Status Loader::LoadVocabulary(const JsonValue& model) {
  const JsonValue* vocab = model.Find("vocab");
  if (vocab == nullptr || !vocab->is_object())
    return Bad("model.vocab", "must be an object of tokens and ids");
  if (vocab->AsObject().empty()) return Bad("model.vocab", "is empty");
  if (vocab->AsObject().size() > static_cast<size_t>(kMaxTokens)) {
    return Bad("model.vocab", "has %d tokens (the limit is %d)", vocab->AsObject().size(),
               kMaxTokens);
  }
  for (const JsonMember& member : vocab->AsObject()) {
    const std::string key = "model.vocab[\"" + member.key + "\"]";
    const std::optional<int64_t> id = member.value.ToInt64();
    if (!id)
      return Bad(key, "the id must be a 64-bit integer, not %s", member.value.Dump().substr(0, 40));
    if (member.key.empty()) return Bad(key, "the token is empty");
    LOCKSTEP_RETURN_IF_ERROR(AddToken(*id, member.key, key));
  }
  return OkStatus();
}

StatusOr<std::pair<std::string, std::string>> Loader::ReadMerge(const JsonValue& merge,
                                                                const std::string& key) const {
  if (merge.is_string()) {
    const std::string& text = merge.AsString();
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return Bad(key, "\"%s\" is not two tokens with one space between", text);
    }
    return std::make_pair(text.substr(0, space), text.substr(space + 1));
  }
  if (merge.is_array() && merge.AsArray().size() == 2 && merge.AsArray()[0].is_string() &&
      merge.AsArray()[1].is_string()) {
    return std::make_pair(merge.AsArray()[0].AsString(), merge.AsArray()[1].AsString());
  }
  return Bad(key, "must be \"left right\" or [\"left\", \"right\"]");
}

Status Loader::LoadMerges(const JsonValue& model) {
  const JsonValue* merges = model.Find("merges");
  if (merges == nullptr || !merges->is_array()) return Bad("model.merges", "must be an array");
  const JsonValue::Array& list = merges->AsArray();
  if (list.size() > kMaxMerges) {
    return Bad("model.merges", "has %d entries (the limit is %d)", list.size(), kMaxMerges);
  }
  data_->encoder.ReserveMerges(list.size());
  for (size_t rank = 0; rank < list.size(); ++rank) {
    const std::string key = absl::StrFormat("model.merges[%d]", rank);
    LOCKSTEP_ASSIGN_OR_RETURN(const auto pair, ReadMerge(list[rank], key));
    const std::string wrong =
        data_->AddMerge(static_cast<int64_t>(rank), {pair.first, pair.second});
    if (!wrong.empty()) return Bad(key, "%s", wrong);
  }
  return OkStatus();
}

Status Loader::LoadAddedTokens(const JsonValue* added) {
  if (added == nullptr || added->is_null()) return OkStatus();
  if (!added->is_array()) return Bad("added_tokens", "must be an array, not %s", added->KindName());
  for (size_t i = 0; i < added->AsArray().size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(
        LoadAddedToken(added->AsArray()[i], absl::StrFormat("added_tokens[%d]", i)));
  }
  return OkStatus();
}

Status Loader::LoadAddedToken(const JsonValue& added, const std::string& key) {
  const JsonValue* content = added.Find("content");
  const JsonValue* id_value = added.Find("id");
  if (content == nullptr || !content->is_string() || content->AsString().empty()) {
    return Bad(key + ".content", "must be a text that is not empty");
  }
  const std::string& text = content->AsString();
  if (text.size() > kMaxAddedTokenBytes) {
    return Bad(key + ".content", "is longer than %d bytes", kMaxAddedTokenBytes);
  }
  if (id_value == nullptr || !id_value->ToInt64())
    return Bad(key + ".id", "must be a 64-bit integer");
  const int64_t id = *id_value->ToInt64();
  for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool set, Flag(added, flag, key));
    if (set) return Unsupported(key + "." + flag, std::string(flag) + " of \"" + text + "\"");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const bool normalized, Flag(added, "normalized", key));
  LOCKSTEP_ASSIGN_OR_RETURN(const bool special, Flag(added, "special", key));
  const auto known = data_->ids.find(text);
  if (known == data_->ids.end()) {
    LOCKSTEP_RETURN_IF_ERROR(AddToken(id, text, key));
  } else if (known->second != id) {
    return Bad(key, "\"%s\" has the id %d here and %d elsewhere", text, id, known->second);
  }
  const std::string wrong = data_->MarkAdded(id, special, normalized);
  return wrong.empty() ? OkStatus() : Bad(key, "%s", wrong);
}

Status Loader::LoadPreTokenizer(const JsonValue* value, const std::string& key, bool* byte_level) {
  if (value == nullptr || value->is_null()) return Bad(key, "must end in ByteLevel, but is absent");
  if (*byte_level) return Unsupported(key, "a step after ByteLevel");
  const std::string type = TypeOf(*value);
  if (type == "Split") return LoadSplit(*value, key);
  if (type == "ByteLevel") {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool prefix, Flag(*value, "add_prefix_space", key));
    if (prefix) return Unsupported(key + ".add_prefix_space", "a prefix space");
    *byte_level = true;
    const JsonValue* use_regex = value->Find("use_regex");
    if (use_regex != nullptr && use_regex->is_bool() && !use_regex->AsBool()) return OkStatus();
    return data_->pre_tokenizer.AddRegex(kGpt2Split);
  }
  const JsonValue* list = value->Find("pretokenizers");
  if (type == "Sequence" && list != nullptr && list->is_array()) {
    for (size_t i = 0; i < list->AsArray().size(); ++i) {
      const JsonValue& step = list->AsArray()[i];
      const std::string step_key = absl::StrFormat("%s.pretokenizers[%d]", key, i);
      if (TypeOf(step) == "Sequence") return Unsupported(step_key, "a sequence within a sequence");
      LOCKSTEP_RETURN_IF_ERROR(LoadPreTokenizer(&step, step_key, byte_level));
    }
    return OkStatus();
  }
  return Unsupported(key, "pre-tokenizer " + type);
}

Status Loader::LoadSplit(const JsonValue& split, const std::string& key) {
  const JsonValue* behavior = split.Find("behavior");
  if (behavior == nullptr || !behavior->is_string() || behavior->AsString() != "Isolated") {
    return Unsupported(key + ".behavior", "a split that is not Isolated");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const bool invert, Flag(split, "invert", key));
  if (invert) return Unsupported(key + ".invert", "an inverted split");
  const JsonValue* pattern = split.Find("pattern");
  const JsonValue* regex = pattern == nullptr ? nullptr : pattern->Find("Regex");
  const JsonValue* literal = pattern == nullptr ? nullptr : pattern->Find("String");
  if (regex != nullptr && regex->is_string()) {
    const Status added = data_->pre_tokenizer.AddRegex(regex->AsString());
    return added.ok() ? added : Bad(key + ".pattern.Regex", "%s", MessageOf(added));
  }
  if (literal != nullptr && literal->is_string() && !literal->AsString().empty()) {
    data_->pre_tokenizer.AddLiteral(literal->AsString());
    return OkStatus();
  }
  return Bad(key + ".pattern", "must be {\"Regex\": ...} or {\"String\": ...}");
}

StatusOr<std::unique_ptr<TokenizerData>> Loader::Load(const JsonValue& root) {
  if (!root.is_object()) return Bad("the top level", "must be an object, not %s", root.KindName());
  const JsonValue* model = root.Find("model");
  if (model == nullptr || !model->is_object()) return Bad("model", "must be an object");
  LOCKSTEP_RETURN_IF_ERROR(CheckNormalizer(root.Find("normalizer")));
  LOCKSTEP_RETURN_IF_ERROR(CheckByteLevel(root.Find("decoder"), "decoder", false));
  LOCKSTEP_RETURN_IF_ERROR(CheckByteLevel(root.Find("post_processor"), "post_processor", true));
  LOCKSTEP_RETURN_IF_ERROR(CheckModel(*model));
  bool byte_level = false;
  LOCKSTEP_RETURN_IF_ERROR(
      LoadPreTokenizer(root.Find("pre_tokenizer"), "pre_tokenizer", &byte_level));
  if (!byte_level)
    return Unsupported("pre_tokenizer", "a pre-tokenizer that does not end in ByteLevel");
  LOCKSTEP_RETURN_IF_ERROR(LoadVocabulary(*model));
  LOCKSTEP_RETURN_IF_ERROR(LoadMerges(*model));
  LOCKSTEP_ASSIGN_OR_RETURN(const bool ignore_merges, Flag(*model, "ignore_merges", "model"));
  data_->encoder.set_ignore_merges(ignore_merges);
  if (const std::string wrong = data_->CheckBytes(); !wrong.empty())
    return Bad("model.vocab", "%s", wrong);
  LOCKSTEP_RETURN_IF_ERROR(LoadAddedTokens(root.Find("added_tokens")));
  return std::move(data_);
}

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json,
                                                         std::string_view name) {
  JsonLimits limits;
  limits.nesting = 64;
  limits.refuse_duplicate_keys = true;
  StatusOr<JsonValue> root = ParseJson(json, limits);
  if (!root.ok()) return ModelError("%s: %s; %s", name, MessageOf(root.status()), kRemedy);
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<TokenizerData> data,
                            Loader(std::string(name)).Load(*root));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(data)));
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& tokenizer_json_path) {
  if (!FileExists(tokenizer_json_path)) {
    return ModelError(
        "%s does not exist; --model must name a directory with the checkpoint's tokenizer.json",
        tokenizer_json_path);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(
      const std::string json,
      ReadTextFile(tokenizer_json_path, uint64_t{256} << 20, ErrorKind::kModel));
  return FromJson(json, tokenizer_json_path);
}

}  // namespace lockstep
