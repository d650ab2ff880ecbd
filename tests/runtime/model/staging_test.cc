// The memory that tensors pass through while loading is what was planned for it: as allocated, on
// the heap and in buffers, at the worst moment of loading.
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/model.h"
#include "runtime/tensor/buffer.h"
#include "tests/support/ranks.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary.h"

namespace {

std::atomic<int64_t> heap_bytes{0}, most_bytes{0};

void Sample() {
  const int64_t now = heap_bytes + static_cast<int64_t>(lockstep::Buffer::LiveBytes());
  int64_t most = most_bytes;
  while (now > most && !most_bytes.compare_exchange_weak(most, now)) {
  }
}

void Free(void* memory) {
  if (memory == nullptr) return;
  heap_bytes -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) {
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  heap_bytes += static_cast<int64_t>(malloc_usable_size(memory));
  Sample();
  return memory;
}
void operator delete(void* memory) noexcept { Free(memory); }
void operator delete(void* memory, size_t) noexcept { Free(memory); }

namespace lockstep {
namespace {

constexpr char kConfig[] = R"({"model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"],
"hidden_act": "silu", "rms_norm_eps": 1e-05, "attention_bias": false, "partial_rotary_factor": 0.5,
"rope_theta": 1000000, "max_position_embeddings": 4096, "n_shared_experts": 1, "n_group": 1,
"topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.0,
"num_nextn_predict_layers": 0, "tie_word_embeddings": false, "use_qk_norm": false,
"dtype": "bfloat16", "hidden_size": 1024, "num_hidden_layers": 1, "first_k_dense_replace": 1,
"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 12288,
"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 1000,
"eos_token_id": [940], "pad_token_id": 940})";

// One dense layer, whose last matrix is by far the largest that is sliced by columns: 24 MiB.
void WriteModel(const testing::TemporaryDirectory& directory) {
  testing::SafetensorsWriter writer;
  const auto add = [&writer](const std::string& name, const std::vector<int64_t>& shape) {
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    writer.Add(name, "BF16", shape, std::string(static_cast<size_t>(2 * elements), '\1'));
  };
  const std::string layer = "model.layers.0.";
  add("model.embed_tokens.weight", {1000, 1024});
  add("lm_head.weight", {1000, 1024});
  add("model.norm.weight", {1024});
  add(layer + "input_layernorm.weight", {1024});
  add(layer + "post_attention_layernorm.weight", {1024});
  add(layer + "self_attn.q_proj.weight", {64, 1024});
  add(layer + "self_attn.k_proj.weight", {32, 1024});
  add(layer + "self_attn.v_proj.weight", {32, 1024});
  add(layer + "self_attn.o_proj.weight", {1024, 64});
  add(layer + "mlp.gate_proj.weight", {12288, 1024});
  add(layer + "mlp.up_proj.weight", {12288, 1024});
  add(layer + "mlp.down_proj.weight", {1024, 12288});
  directory.Write("model.safetensors", writer.File());
  directory.Write("config.json", kConfig);
}

TEST(Staging, IsWhatLoadingTakesAtItsWorstMoment) {
  const testing::TemporaryDirectory directory;
  WriteModel(directory);
  for (const int ranks : {1, 2}) {
    std::atomic<int64_t> planned{0}, chunks{0}, before{0};
    testing::RunRanks(ranks, "tcp", [&](Membership&, Group& group) {
      const auto backend = kernels::MakeBackend("cpu", kernels::Precision::kFast).value();
      ThreadPool pool(1);
      LoadOptions load;
      load.directory = directory.path();
      load.shares.assign(static_cast<size_t>(ranks), 1);
      load.limits = {.max_rows = 1, .max_outputs = 1, .max_model_len = 16, .kv_blocks = 1};
      load.progress = [](const LoadProgress&) { Sample(); };
      ASSERT_TRUE(Barrier(group).ok());
      if (group.rank() == 0) {
        before = heap_bytes + static_cast<int64_t>(Buffer::LiveBytes());
        most_bytes = before.load();
      }
      ASSERT_TRUE(Barrier(group).ok());
      const auto model = LoadModel(load, group, *backend, pool);
      ASSERT_TRUE(model.ok()) << model.status();
      const MemoryPlan& plan = (*model)->memory();
      EXPECT_GT(plan.staging_bytes, plan.kv_bytes + plan.scratch_bytes);
      planned += static_cast<int64_t>(plan.weight_bytes + plan.staging_bytes);
      chunks += 8 << 20;
      ASSERT_TRUE(Barrier(group).ok());
    });
    const int64_t taken = most_bytes - before;
    // Names, headers and threads.
    constexpr int64_t kBesides = 1 << 20;
    EXPECT_LE(taken, planned + kBesides) << ranks << " ranks";
    // What rows pass through chunk by chunk has room that BF16 does not need.
    EXPECT_GE(taken, planned - chunks - kBesides) << ranks << " ranks";
  }
}

}  // namespace
}  // namespace lockstep
