// What tests/fuzz/gguf_model_fuzz.cc runs on one input; fuzz_seeds_test.cc in tests/runtime/engine
// replays the seeds and damaged copies of them through it.
#pragma once

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/base/gguf.h"
#include "runtime/model/config.h"
#include "runtime/text/model_text.h"
#include "runtime/weights/checkpoint.h"
#include "tests/fuzz/memory_files.h"
#include "tests/fuzz/model_text_fuzz_body.h"
#include "tests/fuzz/stored_rows.h"

namespace lockstep {

// What a file was accepted as.
struct GgufModelOutcome {
  bool container = false, checkpoint = false, config = false, text = false;
};

// Sizes that the loader and the arithmetic multiply, divide and index by.
inline void CheckGgufConfig(const ModelConfig& config, const Checkpoint& checkpoint,
                            const Gguf& gguf) {
  for (const int64_t size :
       {config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
        config.num_key_value_heads, config.head_dim, config.intermediate_size,
        config.moe_intermediate_size, config.n_routed_experts, config.num_experts_per_tok,
        config.n_group, config.topk_group, config.vocab_size, config.max_position_embeddings}) {
    LOCKSTEP_CHECK(size >= 1 && size <= int64_t{1} << 24);
  }
  for (const double number : {config.rope_theta, config.rms_norm_eps, config.routed_scaling_factor})
    LOCKSTEP_CHECK(std::isfinite(number) && number >= 0);
  LOCKSTEP_CHECK(config.num_attention_heads % config.num_key_value_heads == 0);
  LOCKSTEP_CHECK(config.num_experts_per_tok <= config.n_routed_experts);
  LOCKSTEP_CHECK(config.first_k_dense_replace <= config.num_hidden_layers);
  // What went through config.json as a fraction of the head is the file's number again.
  const int64_t* rotary =
      gguf.Integer(*gguf.Text("general.architecture") + ".rope.dimension_count");
  LOCKSTEP_CHECK(rotary == nullptr || *rotary == config.rotary_dim);
  LOCKSTEP_CHECK(config.rotary_dim >= 0 && config.rotary_dim <= config.head_dim);
  const TensorInfo* embedding = checkpoint.Find("model.embed_tokens.weight");
  LOCKSTEP_CHECK(embedding != nullptr && embedding->shape[0] == config.vocab_size);
  for (const int32_t id : config.eos_token_ids) LOCKSTEP_CHECK(id >= 0 && id < config.vocab_size);
}

// As ordinary text, all of it comes back: no byte is without a token.
inline void CheckGgufTokenizer(const Tokenizer& tokenizer) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    (void)tokenizer.Decode(std::span(&id, 1), true);
  const std::string text = "The <|user|> 日本 \n\n 12345 </think>";
  (void)tokenizer.Encode(text);
  LOCKSTEP_CHECK(tokenizer.Decode(tokenizer.EncodePlain(text), false) == text);
}

// Any bytes as a GGUF model: errors of the model, or tensors under Hugging Face's names that lie in
// the file, a config that can be computed with, and a text that can be used. As for gguf_fuzz, the
// first byte says how much longer the file is than what is given.
inline GgufModelOutcome FuzzGgufModel(std::string_view data) {
  GgufModelOutcome outcome;
  if (data.empty()) return outcome;
  const std::string path = "fuzz:/model.gguf";
  const uint64_t rest = static_cast<unsigned char>(data[0]) * uint64_t{512};
  data.remove_prefix(1);
  MemoryFiles files;
  files.Add("model.gguf", data, rest);
  const MountedFiles mounted("fuzz:", files);

  const StatusOr<Gguf> gguf = OpenGgufFiles(path);
  const StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  const StatusOr<ModelText> text = LoadModelText(path, "auto");
  for (const Status& status : {gguf.status(), checkpoint.status(), text.status()})
    LOCKSTEP_CHECK(status.ok() || KindOf(status) == ErrorKind::kModel);
  outcome = {gguf.ok(), checkpoint.ok(), false, text.ok()};
  LOCKSTEP_CHECK(outcome.container || (!outcome.checkpoint && !outcome.text));
  if (text.ok()) {
    CheckModelText(*text);
    CheckGgufTokenizer(*text->tokenizer);
  }
  if (!checkpoint.ok()) return outcome;
  for (const auto& [name, info] : (*checkpoint)->tensors())
    LOCKSTEP_CHECK(info.data.bytes > 0 && info.shape.size() <= 2);
  CheckRows((*checkpoint)->tensors(), data.size() + rest);
  LOCKSTEP_CHECK((*checkpoint)->Digest().ok());  // reads of every tensor
  const auto config = ParseModelConfig((*checkpoint)->config(), (*checkpoint)->config_file());
  LOCKSTEP_CHECK(config.ok() || KindOf(config.status()) == ErrorKind::kModel);
  outcome.config = config.ok();
  if (config.ok()) CheckGgufConfig(*config, **checkpoint, *gguf);
  return outcome;
}

}  // namespace lockstep
