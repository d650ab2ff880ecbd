// What GGUF files call tensors and settings, in the words of Hugging Face.
#pragma once

#include <string>

#include "runtime/base/gguf.h"
#include "runtime/base/status.h"

namespace lockstep {

// The architectures of GLM-4.x in general.architecture.
enum class GgufArchitecture { kGlm4Moe, kDeepseek2 };

// A ModelError naming the file and the supported ones for any other.
StatusOr<GgufArchitecture> GgufArchitectureOf(const Gguf& gguf, const std::string& path);

// The Hugging Face name of one tensor, or of a stack of them (experts, heads), whose i-th is
// `before` + i + `after`.
struct GgufName {
  std::string before;
  std::string after;
  bool stack = false;

  std::string Of(int64_t index) const {
    return stack ? before + std::to_string(index) + after : before;
  }
};

// False where the architecture has no such tensor.
//
// deepseek2's attn_k_b and attn_v_b, which have no counterpart, are stacks over the heads:
// self_attn.k_b_proj.H.weight [kv_lora_rank, qk_nope_head_dim] (so transposed, as the file has it)
// and self_attn.v_b_proj.H.weight [v_head_dim, kv_lora_rank].
bool TranslateGgufName(GgufArchitecture architecture, const std::string& name, GgufName* out);

// The layer of "blk.N.NAME", and NAME; -1 for other names.
int64_t GgufLayerOf(const std::string& name, std::string* rest);

// config.json's text for the metadata, with what only the tensors tell (vocab_size, attention_bias,
// use_qk_norm, tie_word_embeddings, whether the MTP layer is there). A ModelError names the file
// and the key that is missing, contradicts others, or asks for what GLM-4.x does not compute.
StatusOr<std::string> GgufConfig(const Gguf& gguf, GgufArchitecture architecture,
                                 const std::string& path);

}  // namespace lockstep
