// What `lockstep shard` writes of a model: the slices of every rank, and the formats of tensors
// that are to take fewer bits.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/config.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

// New formats of the matrices that `quantize` names: "q4_k" (attention, dense feed-forwards,
// experts and shared experts), or by group, "experts=q4_k,attention=q8_0,head=q6_k", or both:
// "q4_k, attention=q8_0". Groups are attention, dense, experts, shared, draft (the draft layer's
// attention, feed-forwards and eh_proj), embedding and head; of these the last three change only if
// they are named. A router, a norm, a bias and a draft layer's own tables never change; nor do
// matrices whose inputs are no multiple of 32 (fp8: any), and kv_b_proj, of which one half is kept
// as float32 in memory anyway.
StatusOr<std::map<std::string, WeightFormat>> QuantizedFormats(const ModelConfig& config,
                                                               const Checkpoint& checkpoint,
                                                               std::string_view quantize);

// Of every rank all tensors in the order in which it loads them. `checkpoint` has the formats that
// the files will have. What it holds beyond the model is an error. The draft layer (MTP) goes along
// if it is there, but for copies of the embedding and of the head that equal the model's own: these
// are appended to `left_out`, as are further draft layers, which nothing computes.
StatusOr<std::vector<std::vector<SliceRequest>>> PlanShards(const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const std::vector<double>& shares,
                                                            std::vector<std::string>* left_out);

}  // namespace lockstep
