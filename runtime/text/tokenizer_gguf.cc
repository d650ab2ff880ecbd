// The tokenizer inside a GGUF file (tokenizer.ggml.*).
#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <utility>

#include "runtime/base/gguf.h"
#include "runtime/text/tokenizer_data.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

// What `pre` glm4 stands for: the split of GLM-4's tokenizer.json, whole tokens before merges.
constexpr const char* kGlm4Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The numbers in tokenizer.ggml.token_type.
enum : int64_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

// GLM's added tokens that its tokenizer.json does not mark special, so that skip_special keeps
// them. GGUF has no such mark: converters write kControl for what tokenizer.json marks special and
// for whatever looks like <|...|>, which several of these do.
constexpr const char* kGlmNotSpecial[] = {
    "<|code_prefix|>", "<|code_middle|>",  "<|code_suffix|>", "<think>",   "</think>",
    "<tool_call>",     "</tool_call>",     "<tool_response>", "<arg_key>", "</arg_key>",
    "<arg_value>",     "</tool_response>", "</arg_value>",    "/nothink",  "<|begin_of_box|>",
    "<|end_of_box|>",  "<|image|>",        "<|video|>",
};

bool IsSpecialToken(int64_t type, const std::string& text) {
  const bool kept = std::any_of(std::begin(kGlmNotSpecial), std::end(kGlmNotSpecial),
                                [&](const char* name) { return text == name; });
  return type == kControl && !kept;
}

class Loader {
 public:
  Loader(const Gguf& gguf, std::string name) : gguf_(gguf), name_(std::move(name)) {}

  StatusOr<std::unique_ptr<TokenizerData>> Load();

 private:
  Status Bad(const std::string& key, const std::string& what) const {
    return ModelError("%s: tokenizer.ggml.%s: %s; fetch the file again", name_, key, what);
  }
  Status AddTokens(const std::vector<std::string>& texts, const std::vector<int64_t>& types);
  Status AddMerges(const std::vector<std::string>& merges);
  Status MarkAddedTokens(const std::vector<std::string>& texts, const std::vector<int64_t>& types);

  const Gguf& gguf_;
  std::string name_;
  std::unique_ptr<TokenizerData> data_ = std::make_unique<TokenizerData>();
};

std::string Item(const char* key, size_t index) { return absl::StrFormat("%s[%d]", key, index); }

Status Loader::AddTokens(const std::vector<std::string>& texts, const std::vector<int64_t>& types) {
  for (size_t id = 0; id < texts.size(); ++id) {
    const int64_t type = types[id];
    if (type != kNormal && type != kControl && type != kUserDefined && type != kUnused) {
      return Bad(Item("token_type", id),
                 absl::StrFormat("%d; a byte-level BPE has only 1 (normal), 3 (control), 4 (user "
                                 "defined) and 5 (unused)",
                                 type));
    }
    if (type == kUnused) continue;  // padding up to the model's rows
    if (texts[id].empty() || !IsValidUtf8(texts[id])) {
      return Bad(Item("tokens", id), "is empty or no UTF-8");
    }
    if (type != kNormal) continue;
    const std::string wrong = data_->AddToken(static_cast<int64_t>(id), texts[id]);
    if (!wrong.empty()) return Bad(Item("tokens", id), wrong);
  }
  return OkStatus();
}

Status Loader::AddMerges(const std::vector<std::string>& merges) {
  if (merges.size() > kMaxMerges) {
    return Bad("merges",
               absl::StrFormat("has %d entries (the limit is %d)", merges.size(), kMaxMerges));
  }
  data_->encoder.ReserveMerges(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string& merge = merges[rank];
    const size_t space = merge.find(' ');
    if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos) {
      return Bad(Item("merges", rank), "is not two tokens with one space between");
    }
    const std::string wrong = data_->AddMerge(static_cast<int64_t>(rank),
                                              {merge.substr(0, space), merge.substr(space + 1)});
    if (!wrong.empty()) return Bad(Item("merges", rank), wrong);
  }
  return OkStatus();
}

Status Loader::MarkAddedTokens(const std::vector<std::string>& texts,
                               const std::vector<int64_t>& types) {
  for (size_t id = 0; id < texts.size(); ++id) {
    if (types[id] != kControl && types[id] != kUserDefined) continue;
    if (texts[id].size() > kMaxAddedTokenBytes) {
      return Bad(Item("tokens", id),
                 absl::StrFormat("is longer than %d bytes", kMaxAddedTokenBytes));
    }
    std::string wrong = data_->AddToken(static_cast<int64_t>(id), texts[id]);
    if (wrong.empty()) {
      wrong = data_->MarkAdded(static_cast<int64_t>(id), IsSpecialToken(types[id], texts[id]),
                               /*normalized=*/false);
    }
    if (!wrong.empty()) return Bad(Item("tokens", id), wrong);
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<TokenizerData>> Loader::Load() {
  const std::vector<std::string>* texts = gguf_.Texts("tokenizer.ggml.tokens");
  const std::vector<std::string>* merges = gguf_.Texts("tokenizer.ggml.merges");
  const std::vector<int64_t>* types = gguf_.Integers("tokenizer.ggml.token_type");
  if (texts == nullptr || texts->empty()) return Bad("tokens", "must be an array of texts");
  if (texts->size() > static_cast<size_t>(kMaxTokens)) {
    return Bad("tokens",
               absl::StrFormat("has %d entries (the limit is %d)", texts->size(), kMaxTokens));
  }
  if (types == nullptr || types->size() != texts->size()) {
    return Bad("token_type", "must be an array with a number for each token");
  }
  if (merges == nullptr) return Bad("merges", "must be an array of texts");
  LOCKSTEP_RETURN_IF_ERROR(data_->pre_tokenizer.AddRegex(kGlm4Split));
  LOCKSTEP_RETURN_IF_ERROR(AddTokens(*texts, *types));
  LOCKSTEP_RETURN_IF_ERROR(AddMerges(*merges));
  data_->encoder.set_ignore_merges(true);
  if (const std::string wrong = data_->CheckBytes(); !wrong.empty()) return Bad("tokens", wrong);
  LOCKSTEP_RETURN_IF_ERROR(MarkAddedTokens(*texts, *types));
  return std::move(data_);
}

}  // namespace

Status Tokenizer::CheckGguf(const Gguf& gguf, std::string_view name) {
  const std::string* model = gguf.Text("tokenizer.ggml.model");
  const std::string* pre = gguf.Text("tokenizer.ggml.pre");
  const char* remedy =
      "put the checkpoint's tokenizer.json into the same directory, and it is used instead";
  if (model == nullptr) return ModelError("%s: holds no tokenizer; %s", name, remedy);
  if (*model != "gpt2" || pre == nullptr || *pre != "glm4") {
    return ModelError(
        "%s: its tokenizer is of model '%s' and pre '%s'; only 'gpt2' and 'glm4' (GLM-4.x) are "
        "read: %s",
        name, *model, pre == nullptr ? "(absent)" : *pre, remedy);
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const Gguf& gguf, std::string_view name) {
  LOCKSTEP_RETURN_IF_ERROR(CheckGguf(gguf, name));
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<TokenizerData> data,
                            Loader(gguf, std::string(name)).Load());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(data)));
}

}  // namespace lockstep
