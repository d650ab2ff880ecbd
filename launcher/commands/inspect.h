// What the two parts of `lockstep inspect` share: of checkpoints, and of directories made by
// `lockstep shard`.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/model/config.h"
#include "runtime/model/tensor_groups.h"

namespace lockstep {

// What tables and JSON call the groups, in the order of the tables.
inline constexpr std::pair<TensorGroup, const char*> kComponents[] = {
    {TensorGroup::kEmbedding, "embedding"},
    {TensorGroup::kAttention, "attention"},
    {TensorGroup::kDense, "dense feed-forward"},
    {TensorGroup::kRouter, "router"},
    {TensorGroup::kExperts, "experts"},
    {TensorGroup::kShared, "shared experts"},
    {TensorGroup::kNorms, "norms"},
    {TensorGroup::kDraft, "mtp layer"},
    {TensorGroup::kHead, "head"}};

// What decoding one token reads of the files' bytes: everything but the embedding, the draft layer
// and the experts that the router leaves out. `bytes` of each group that there is: without a head
// the embedding is read in its place.
uint64_t BytesPerToken(std::map<TensorGroup, uint64_t> bytes, const ModelConfig& config);

// Which ranks' files the directory holds, what is in them, and which are missing or of another set.
// An error after the printing if they are not one set.
Status InspectFilesOfRanks(const Options& options);

}  // namespace lockstep
