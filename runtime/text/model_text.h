// What a model says about text: tokenizer, chat template, and defaults for generation. A model is a
// directory in Hugging Face layout, or a GGUF model (base/gguf.h: a file, one of its parts, or a
// directory that holds one), which is self-contained: files beside it are not looked at, except
// tokenizer.json where the GGUF file holds no tokenizer that is known here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

// generation_config.json, or general.sampling.* and the end tokens (eos, eot, eom) of a GGUF file.
// Absent keys stay unset; values out of range are ModelErrors.
struct GenerationDefaults {
  std::optional<bool> do_sample;  // false: greedy unless the request says otherwise
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<int64_t> top_k;  // 0: off
  std::optional<double> repetition_penalty;
  std::vector<int32_t> eos_token_ids;  // sorted, unique
  std::optional<int32_t> pad_token_id;
  // Keys of a GGUF file that are of the wrong kind and therefore unset, by name: to be logged once
  // as a warning. Empty: nothing to say.
  std::string warning;
};

struct ModelText {
  std::string directory;  // as it was given; of a GGUF model the file
  std::unique_ptr<Tokenizer> tokenizer;
  // Nothing: the checkpoint has no template that is known; only raw completion works (see
  // RequireChatFamily).
  std::optional<ChatFamily> chat_family;
  // Why there is no family, or that the template is not one that was tested, with its hash: to be
  // logged once as a warning. Empty: nothing to say.
  std::string chat_warning;
  GenerationDefaults generation;
  // Tokens that end a reply: eos_token_id of generation_config.json, else of config.json (of a GGUF
  // file: eos, eot and eom), and in any case <|endoftext|>, <|user|> and <|observation|> where a
  // chat family is known. Sorted, unique.
  std::vector<int32_t> stop_token_ids;

  // The family, or a UsageError saying why there is none and what to do (--raw, --chat-template).
  StatusOr<ChatFamily> RequireChatFamily() const;
};

// `chat_template`: "auto", "glm-4.6" or "glm-4.7" (the flag --chat-template).
StatusOr<ModelText> LoadModelText(const std::string& model, const std::string& chat_template);

// Only the tokenizer.
StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model);

// Only the family, from chat_template.jinja, the chat_template key of tokenizer_config.json, or
// tokenizer.chat_template of a GGUF file; no tokenizer is read. A ModelError if a file is there but
// cannot be read.
struct ChatFamilyChoice {
  std::optional<ChatFamily> family;
  std::string warning;
};
StatusOr<ChatFamilyChoice> ChooseChatFamily(const std::string& model,
                                            const std::string& chat_template);
// Only generation_config.json (an absent file gives the defaults).
StatusOr<GenerationDefaults> LoadGenerationDefaults(const std::string& directory);

}  // namespace lockstep
