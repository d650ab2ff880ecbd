// The memory of one step, taken once from an arena.
#pragma once

#include "runtime/kernels/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/model.h"
#include "runtime/model/shape.h"
#include "runtime/tensor/arena.h"

namespace lockstep {

// Letters in shapes: R rows of the largest step, D hidden, H and K this rank's query and KV heads
// of d dimensions, F this rank's feed-forward columns, E experts of which a row takes k, V this
// rank's rows of the vocabulary. Latent attention has H heads of n plain and r rotated dimensions
// and v value dimensions, Q the query's latent and L the latent.

// What latent attention needs besides.
struct LatentScratch {
  float* query_latents = nullptr;     // [R, Q]
  float* latents = nullptr;           // [R, L + r]
  float* plain_queries = nullptr;     // [H, R, n]
  float* rotated_queries = nullptr;   // [H, R, r]
  float* absorbed_queries = nullptr;  // [H, R, L]
  float* attended_latents = nullptr;  // [H, R, L]
  float* head_values = nullptr;       // [H, R, v]
  // Every head with all rows of the step, with those of its first half, with the others: filled
  // before any layer, since ops may still read them when the host is layers ahead.
  kernels::ExpertGroups heads[3];
};

// What the draft layer needs besides.
struct DraftScratch {
  float* hidden = nullptr;  // [R, D] normed hidden states
  float* joined = nullptr;  // [R, 2 D]
};

struct Scratch {
  float* residual = nullptr;  // [R, D]
  float* normed = nullptr;    // [R, D]
  float* sum = nullptr;       // [R, D] what an exchange brings back
  float* qkv = nullptr;       // [R, (H + 2 K) d]
  float* attended = nullptr;  // [R, H d]
  float* cosines = nullptr;   // [R, rotary_dim / 2]
  float* sines = nullptr;
  const int32_t** tables = nullptr;   // [sequences]
  float* attention = nullptr;         // as kernels::AttentionScratch says
  LatentScratch latent;               // glm4_moe_lite alone
  DraftScratch draft;                 // with a draft layer alone
  float* gate_up = nullptr;           // [R, 2 F], dense or shared
  float* activated = nullptr;         // [R, F]
  float* shared_out = nullptr;        // [R, D]
  float* router_logits = nullptr;     // [R, E]
  int32_t* chosen = nullptr;          // [layers, R, k]: the host reads them when the step is over
  float* expert_weights = nullptr;    // [R, k]
  kernels::ExpertGroups groups;       // without group_count
  int32_t* group_counts = nullptr;    // [layers, 2]: the second one of a step's second half
  float* expert_gate_up = nullptr;    // [R k, 2 F]
  float* expert_activated = nullptr;  // [R k, F]
  float* expert_out = nullptr;        // [R k, D]
  float* final_hidden = nullptr;      // [outputs, D]
  float* logits = nullptr;            // [outputs, V]
};

Scratch TakeScratch(const ModelConfig& config, const LocalShape& shape, const ModelLimits& limits,
                    int threads, Arena* arena);

}  // namespace lockstep
