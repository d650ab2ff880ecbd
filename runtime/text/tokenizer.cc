#include "runtime/text/tokenizer.h"

#include <algorithm>

#include "runtime/text/tokenizer_data.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

// Cuts `text` at the added tokens of `trie`: `on_text` gets what stands between them, `on_token`
// their ids.
template <typename OnText, typename OnToken>
void SplitAtAdded(const AddedTokenTrie& trie, std::string_view text, const OnText& on_text,
                  const OnToken& on_token) {
  size_t done = 0;
  while (!trie.empty() && done < text.size()) {
    const AddedTokenTrie::Match match = trie.Find(text, done);
    if (match.length == 0) break;
    if (match.start > done) on_text(text.substr(done, match.start - done));
    on_token(match.id);
    done = match.start + match.length;
  }
  if (done < text.size()) on_text(text.substr(done));
}

// `text` itself if it is valid UTF-8, else its repaired copy in `storage`.
std::string_view Repaired(std::string_view text, std::string* storage) {
  if (IsValidUtf8(text)) return text;
  *storage = ReplaceInvalidUtf8(text);
  return *storage;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<TokenizerData> data) : data_(std::move(data)) {
  for (const TokenizerData::Token& token : data_->tokens)
    longest_token_bytes_ = std::max(longest_token_bytes_, token.bytes.size());
}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::string storage;
  std::vector<int32_t> ids;
  const auto on_token = [&](int32_t id) { ids.push_back(id); };
  const auto on_plain = [&](std::string_view plain) {
    for (std::string_view piece : data_->pre_tokenizer.Split(plain))
      data_->encoder.Encode(piece, &ids);
  };
  SplitAtAdded(
      data_->verbatim_added, Repaired(text, &storage),
      [&](std::string_view between) {
        SplitAtAdded(data_->normalized_added, between, on_plain, on_token);
      },
      on_token);
  return ids;
}

std::vector<int32_t> Tokenizer::EncodePlain(std::string_view text) const {
  std::string storage;
  std::vector<int32_t> ids;
  for (std::string_view piece : data_->pre_tokenizer.Split(Repaired(text, &storage))) {
    data_->encoder.Encode(piece, &ids);
  }
  return ids;
}

std::vector<std::string> Tokenizer::PreTokenize(std::string_view text) const {
  std::string storage;
  const std::vector<std::string_view> pieces = data_->pre_tokenizer.Split(Repaired(text, &storage));
  return {pieces.begin(), pieces.end()};
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    const TokenizerData::Token* token = data_->Find(id);
    if (token != nullptr && !(skip_special && token->special)) bytes += token->bytes;
  }
  return ReplaceInvalidUtf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(data_->tokens.size()); }

bool Tokenizer::HasToken(int32_t id) const { return data_->Find(id) != nullptr; }

std::optional<int32_t> Tokenizer::IdOf(std::string_view token) const {
  const auto found = data_->ids.find(token);
  if (found == data_->ids.end()) return std::nullopt;
  return found->second;
}

std::string_view Tokenizer::TokenText(int32_t id) const {
  const TokenizerData::Token* token = data_->Find(id);
  return token == nullptr ? std::string_view() : std::string_view(token->text);
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  const TokenizerData::Token* token = data_->Find(id);
  return token == nullptr ? std::string_view() : std::string_view(token->bytes);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const TokenizerData::Token* token = data_->Find(id);
  return token != nullptr && token->special;
}

bool Tokenizer::IsAdded(int32_t id) const {
  const TokenizerData::Token* token = data_->Find(id);
  return token != nullptr && token->added;
}

}  // namespace lockstep
