// config.json's words for what a GGUF file's metadata says.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "nlohmann/json.hpp"
#include "runtime/weights/gguf_names.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 24;  // above every dimension there is
constexpr int64_t kSigmoid = 2;                 // expert_gating_func

// Metadata of one architecture. The first thing wrong is kept; later reads give zeros.
class Reader {
 public:
  Reader(const Gguf& gguf, std::string prefix, std::string path)
      : gguf_(gguf), prefix_(std::move(prefix)), path_(std::move(path)) {}

  const Status& status() const { return status_; }
  void Fail(const std::string& key, const std::string& what) {
    if (status_.ok()) {
      status_ = ModelError("%s: %s%s %s; convert the checkpoint again with a current converter",
                           path_, prefix_, key, what);
    }
  }
  bool Has(const std::string& key) const { return gguf_.metadata.contains(prefix_ + key); }
  bool HasTensor(const std::string& name) const { return gguf_.tensors.contains(name); }

  // An integer, also where it stands once per layer with one value.
  int64_t Count(const std::string& key, int64_t lowest) {
    int64_t value = 0;
    if (const int64_t* single = gguf_.Integer(prefix_ + key)) {
      value = *single;
    } else if (const auto* list = gguf_.Integers(prefix_ + key);
               list != nullptr && !list->empty()) {
      value = (*list)[0];
      if (std::any_of(list->begin(), list->end(), [&](int64_t other) { return other != value; })) {
        Fail(key, "differs from layer to layer, which GLM-4.x does not");
        return lowest;
      }
    } else {
      Fail(key, Has(key) ? "is not an integer" : "is missing");
      return lowest;
    }
    if (value < lowest || value > kMaxSize) {
      Fail(key, absl::StrFormat("is %d, outside %d .. %d", value, lowest, kMaxSize));
      return lowest;
    }
    return value;
  }
  int64_t CountOr(const std::string& key, int64_t lowest, int64_t fallback) {
    return Has(key) ? Count(key, lowest) : fallback;
  }
  // The files hold float32, config.json its shortest decimal: 1e-05, not 9.99999974e-06.
  double Real(const std::string& key) {
    const double* value = gguf_.Number(prefix_ + key);
    if (value == nullptr || !std::isfinite(*value)) {
      Fail(key, Has(key) ? "is not a number" : "is missing");
      return 1;
    }
    const auto single = static_cast<float>(*value);
    if (static_cast<double>(single) != *value) return *value;
    char text[64];
    const auto written = std::to_chars(text, text + sizeof(text), single);
    double shortest = *value;
    std::from_chars(text, written.ptr, shortest);
    return shortest;
  }
  double RealOr(const std::string& key, double fallback) { return Has(key) ? Real(key) : fallback; }
  bool Flag(const std::string& key, bool fallback) {
    const bool* value = gguf_.Flag(prefix_ + key);
    if (value == nullptr && Has(key)) Fail(key, "is not a boolean");
    return value == nullptr ? fallback : *value;
  }
  const std::string* Text(const std::string& key) const { return gguf_.Text(prefix_ + key); }

 private:
  const Gguf& gguf_;
  std::string prefix_, path_;
  Status status_;
};

// The layers of the model and, where their tensors are in the file, the MTP layers behind them.
void ReadLayers(Reader& reader, const Gguf& gguf, json* config) {
  const int64_t blocks = reader.Count("block_count", 1);
  int64_t nextn = reader.CountOr("nextn_predict_layers", 0, 0);
  if (nextn >= blocks) {
    reader.Fail("nextn_predict_layers", "leaves no layer of block_count");
    return;
  }
  const int64_t layers = blocks - nextn;
  bool present = false;
  std::string rest;
  for (const auto& [name, tensor] : gguf.tensors) {
    present = present || GgufLayerOf(name, &rest) >= layers;
  }
  (*config)["num_hidden_layers"] = layers;
  (*config)["num_nextn_predict_layers"] = present ? nextn : 0;
}

void ReadMixture(Reader& reader, json* config) {
  (*config)["first_k_dense_replace"] = reader.CountOr("leading_dense_block_count", 0, 0);
  (*config)["n_routed_experts"] = reader.Count("expert_count", 1);
  (*config)["num_experts_per_tok"] = reader.Count("expert_used_count", 1);
  (*config)["moe_intermediate_size"] = reader.Count("expert_feed_forward_length", 1);
  (*config)["n_shared_experts"] = reader.CountOr("expert_shared_count", 0, 0);
  (*config)["n_group"] = std::max<int64_t>(reader.CountOr("expert_group_count", 0, 1), 1);
  (*config)["topk_group"] = std::max<int64_t>(reader.CountOr("expert_group_used_count", 0, 1), 1);
  (*config)["norm_topk_prob"] = reader.Flag("expert_weights_norm", false);
  const double scale = reader.RealOr("expert_weights_scale", 1);
  (*config)["routed_scaling_factor"] = scale == 0 ? 1.0 : scale;  // 0: none was given
  if (reader.CountOr("expert_gating_func", 0, kSigmoid) != kSigmoid) {
    reader.Fail("expert_gating_func", "is not 2 (sigmoid), which is what GLM-4.x computes");
  }
}

void ReadGlm4Moe(Reader& reader, json* config) {
  const int64_t heads = reader.Count("attention.head_count", 1);
  const int64_t even = (*config)["hidden_size"].get<int64_t>() / heads;
  const int64_t head_dim = reader.CountOr("attention.key_length", 1, std::max<int64_t>(even, 1));
  const int64_t rotary = reader.Count("rope.dimension_count", 0);
  if (reader.CountOr("attention.value_length", 1, head_dim) != head_dim) {
    reader.Fail("attention.value_length", "differs from attention.key_length");
  }
  // No fraction of the head: the loop below would not end, since it looks for one below 2.
  if (rotary > head_dim)
    return reader.Fail("rope.dimension_count", "is above attention.key_length");
  // Whoever multiplies it out and drops the fraction must get the number again.
  double factor = static_cast<double>(rotary) / static_cast<double>(head_dim);
  while (static_cast<int64_t>(factor * static_cast<double>(head_dim)) < rotary) {
    factor = std::nextafter(factor, 2.0);
  }
  (*config)["num_attention_heads"] = heads;
  (*config)["num_key_value_heads"] = reader.CountOr("attention.head_count_kv", 1, heads);
  (*config)["head_dim"] = head_dim;
  (*config)["partial_rotary_factor"] = factor;
  (*config)["attention_bias"] = reader.HasTensor("blk.0.attn_q.bias");
  (*config)["use_qk_norm"] = reader.HasTensor("blk.0.attn_q_norm.weight");
}

// deepseek2 is also the architecture of DeepSeek's own models, which route and rotate otherwise.
void ReadFlash(Reader& reader, const Gguf& gguf, json* config) {
  const int64_t heads = reader.Count("attention.head_count", 1);
  const int64_t rotary = reader.Count("rope.dimension_count", 2);
  // Older converters write the plain form, without _mla.
  const int64_t key = reader.Has("attention.key_length_mla")
                          ? reader.Count("attention.key_length_mla", 1)
                          : reader.Count("attention.key_length", 1);
  const int64_t value = reader.Has("attention.value_length_mla")
                            ? reader.Count("attention.value_length_mla", 1)
                            : reader.Count("attention.value_length", 1);
  if (key <= rotary) reader.Fail("rope.dimension_count", "is not below attention.key_length_mla");
  if (!reader.Has("attention.q_lora_rank")) {
    reader.Fail("attention.q_lora_rank",
                "is missing: this is a DeepSeek model, not GLM-4.7-Flash, which alone is computed");
  }
  const bool biased = std::any_of(gguf.tensors.begin(), gguf.tensors.end(), [](const auto& tensor) {
    return tensor.first.ends_with(".exp_probs_b.bias");
  });
  if (!biased) {
    reader.Fail("expert_gating_func",
                "cannot be sigmoid, as no layer has exp_probs_b.bias: this is a DeepSeek model, "
                "not GLM-4.7-Flash, which alone is computed");
  }
  (*config)["num_attention_heads"] = heads;
  (*config)["num_key_value_heads"] = heads;
  (*config)["q_lora_rank"] = reader.Count("attention.q_lora_rank", 1);
  (*config)["kv_lora_rank"] = reader.Count("attention.kv_lora_rank", 1);
  (*config)["qk_rope_head_dim"] = rotary;
  (*config)["qk_nope_head_dim"] = key - rotary;
  (*config)["v_head_dim"] = value;
  (*config)["head_dim"] = rotary;
  (*config)["partial_rotary_factor"] = 1.0;
  (*config)["attention_bias"] = false;
  (*config)["topk_method"] = "noaux_tc";
}

// No GLM-4.x model stretches its positions. To llama.cpp a factor without a type is a linear one,
// and type none turns all the others off.
void RefuseRopeScaling(Reader& reader) {
  constexpr char kNotComputed[] = "; no GLM-4.x model has it and it is not computed here";
  const std::string* type = reader.Text("rope.scaling.type");
  if (type != nullptr && *type == "none") return;
  if (reader.Has("rope.scaling.type")) {
    reader.Fail("rope.scaling.type",
                (type != nullptr ? "is '" + *type + "'" : "is not a text") + kNotComputed);
  }
  for (const char* key : {"rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear"}) {
    const double factor = reader.RealOr(key, 1);
    if (factor != 0 && factor != 1) {
      reader.Fail(key, absl::StrFormat("is %g", factor) + kNotComputed);
    }
  }
}

void ReadTokenIds(const Gguf& gguf, int64_t vocab_size, Reader& reader, json* config) {
  json ids = json::array();
  for (const char* name : {"eos", "eot", "eom"}) {
    const int64_t* id = gguf.Integer(absl::StrFormat("tokenizer.ggml.%s_token_id", name));
    if (id == nullptr) continue;
    if (*id < 0 || *id >= vocab_size) {
      reader.Fail("vocab_size",
                  absl::StrFormat("of %d rows has no %s token %d", vocab_size, name, *id));
    }
    if (std::find(ids.begin(), ids.end(), json(*id)) == ids.end()) ids.push_back(*id);
  }
  if (!ids.empty()) (*config)["eos_token_id"] = ids;
  const int64_t* pad = gguf.Integer("tokenizer.ggml.padding_token_id");
  if (pad != nullptr && *pad >= 0 && *pad < vocab_size) (*config)["pad_token_id"] = *pad;
}

}  // namespace

StatusOr<std::string> GgufConfig(const Gguf& gguf, GgufArchitecture architecture,
                                 const std::string& path) {
  const bool flash = architecture == GgufArchitecture::kDeepseek2;
  Reader reader(gguf, flash ? "deepseek2." : "glm4moe.", path);
  const auto embedding = gguf.tensors.find("token_embd.weight");
  if (embedding == gguf.tensors.end() || embedding->second.shape.size() != 2) {
    return ModelError("%s: token_embd.weight is missing or no matrix; fetch the model again", path);
  }
  const int64_t vocab_size = embedding->second.shape[1];
  json config;
  config["architectures"] = {flash ? "Glm4MoeLiteForCausalLM" : "Glm4MoeForCausalLM"};
  config["model_type"] = flash ? "glm4_moe_lite" : "glm4_moe";
  config["hidden_act"] = "silu";
  config["vocab_size"] = vocab_size;
  config["hidden_size"] = reader.Count("embedding_length", 1);
  config["intermediate_size"] = reader.Count("feed_forward_length", 1);
  config["max_position_embeddings"] = reader.Count("context_length", 1);
  config["rms_norm_eps"] = reader.Real("attention.layer_norm_rms_epsilon");
  config["rope_theta"] = reader.Real("rope.freq_base");
  config["rope_scaling"] = nullptr;
  config["tie_word_embeddings"] = !reader.HasTensor("output.weight");
  ReadLayers(reader, gguf, &config);
  ReadMixture(reader, &config);
  if (flash) {
    ReadFlash(reader, gguf, &config);
  } else {
    ReadGlm4Moe(reader, &config);
  }
  RefuseRopeScaling(reader);
  ReadTokenIds(gguf, vocab_size, reader, &config);
  LOCKSTEP_RETURN_IF_ERROR(reader.status());
  return config.dump(2);
}

}  // namespace lockstep
