// Byte-level BPE from a Hugging Face tokenizer.json or from a GGUF file, token for token as Hugging
// Face tokenizers gives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct Gguf;
struct TokenizerData;

// Immutable after loading; every method may be called from any thread.
//
// Text is UTF-8. Bytes that are not become U+FFFD (one for each maximal ill-formed run, as WHATWG
// decoders and Python's errors="replace" do) before anything else looks at them, so Encode never
// fails and Decode(Encode(x)) is x for every valid x.
class Tokenizer {
 public:
  // Reads tokenizer.json. Anything in it that this class would not follow exactly (a normalizer,
  // another pre-tokenizer, dropout, byte fallback...) is a ModelError that names the file, the key
  // and the remedy.
  static StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& tokenizer_json_path);
  // The same from text; `name` stands for the file in errors.
  static StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json,
                                                       std::string_view name);
  // From the metadata of a GGUF file (tokenizer.ggml.*), for GLM's tokenizer only; `name` stands
  // for the file in errors. Gives what the checkpoint's tokenizer.json gives. Not followed:
  // add_bos_token and add_eos_token (the chat template has what GLM's prompts begin with).
  static StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const Gguf& gguf, std::string_view name);
  // Whether FromGguf reads tokenizers of that kind: an error says what is there and what to do.
  static Status CheckGguf(const Gguf& gguf, std::string_view name);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Ids of `text`. Added tokens (<|user|>, <think>, /nothink...) are recognised anywhere, leftmost
  // first and the longest there; none is added. Time is O(n log n) whatever the text.
  std::vector<int32_t> Encode(std::string_view text) const;
  // The same, but added tokens in the text are ordinary text: for what a user typed.
  std::vector<int32_t> EncodePlain(std::string_view text) const;
  // The pieces that the pre-tokenizer cuts `text` into (added tokens not recognised). For tests and
  // diagnosis.
  std::vector<std::string> PreTokenize(std::string_view text) const;

  // Text of `ids`, valid UTF-8: bytes that form no character become U+FFFD. Ids without a token add
  // nothing. `skip_special` leaves out added tokens marked special (<|user|>), not the others
  // (<think>).
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // One more than the highest id that has a token. Ids from here on, and ids below for which
  // HasToken is false, are padding of the model's vocabulary and must never be sampled.
  int32_t vocab_size() const;
  bool HasToken(int32_t id) const;
  // The id of a token by its spelling in tokenizer.json: an added token's content, or a byte-level
  // spelling ("Ġthe").
  std::optional<int32_t> IdOf(std::string_view token) const;
  // The spelling in tokenizer.json; empty for ids without a token.
  std::string_view TokenText(int32_t id) const;
  // The raw bytes that the token stands for (often part of a character); empty for ids without a
  // token.
  std::string_view TokenBytes(int32_t id) const;
  // No token stands for more: so many times as many bytes are more tokens than that.
  size_t longest_token_bytes() const { return longest_token_bytes_; }
  bool IsSpecial(int32_t id) const;  // an added token marked special
  bool IsAdded(int32_t id) const;    // any added token

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerData> data);
  std::unique_ptr<TokenizerData> data_;
  size_t longest_token_bytes_ = 1;
};

}  // namespace lockstep
