#include "runtime/engine/introduction.h"

#include <cstdint>
#include <span>

namespace lockstep {
namespace {

// What must fit together before the first plan.
struct Introduction {
  VocabSlice slice;
  ModelLimits limits;
  bool draft_layer = false;
  uint64_t constraints = 0;  // their digest
};

Status CheckIntroductions(const std::vector<Introduction>& all,
                          const std::vector<std::string>& names, int64_t vocab_size,
                          int first_with_head) {
  int64_t next = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    const ModelLimits &mine = all[0].limits, &other = all[r].limits;
    if (mine.max_rows != other.max_rows || mine.max_outputs != other.max_outputs ||
        mine.max_model_len != other.max_model_len || mine.kv_blocks != other.kv_blocks) {
      return UsageError(
          "%s has other limits than rank 0: rows %d and %d, outputs %d and %d, context %d and %d, "
          "KV blocks %d and %d; "
          "start all ranks for the same command with the same --max-model-len, --max-num-seqs and "
          "--prefill-chunk",
          names[r], other.max_rows, mine.max_rows, other.max_outputs, mine.max_outputs,
          other.max_model_len, mine.max_model_len, other.kv_blocks, mine.kv_blocks);
    }
    if (mine.cache_type != other.cache_type) {
      return UsageError(
          "%s keeps its KV cache as %s, rank 0 as %s; start all ranks with the same "
          "--kv-cache-dtype",
          names[r], kernels::NameOf(other.cache_type), kernels::NameOf(mine.cache_type));
    }
    if (all[0].draft_layer != all[r].draft_layer) {
      return UsageError(
          "%s has %s draft layer, unlike rank 0; start all ranks with the same --draft", names[r],
          all[r].draft_layer ? "a" : "no");
    }
    if (all[0].constraints != 0 && all[0].constraints != all[r].constraints) {
      return UsageError(
          "%s %s, unlike rank 0; give all ranks the same tokenizer, and build lockstep on all "
          "nodes "
          "after deploy/install_xgrammar.sh or on none",
          names[r],
          all[r].constraints == 0 ? "is built without structured output" : "has another tokenizer");
    }
    if (static_cast<int>(r) < first_with_head) continue;
    if (all[r].slice.begin != next || all[r].slice.end < next) {
      return InternalError("%s holds the vocabulary rows %d .. %d, but the ranks before end at %d",
                           names[r], all[r].slice.begin, all[r].slice.end, next);
    }
    next = all[r].slice.end;
  }
  if (next != vocab_size)
    return InternalError("the ranks hold %d rows of a vocabulary of %d", next, vocab_size);
  return OkStatus();
}

}  // namespace

StatusOr<std::vector<VocabSlice>> Introduce(const Model& model, Group& group, VocabSlice slice,
                                            const TokenConstraints* constraints,
                                            const std::vector<std::string>& names,
                                            int first_with_head) {
  const Introduction mine = {slice, model.limits(), model.has_draft_layer(),
                             constraints == nullptr ? 0 : constraints->digest()};
  std::vector<Introduction> all(group.size());
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, std::as_bytes(std::span<const Introduction>(&mine, 1)),
                                     std::as_writable_bytes(std::span(all))));
  LOCKSTEP_RETURN_IF_ERROR(
      CheckIntroductions(all, names, model.config().vocab_size, first_with_head));
  std::vector<VocabSlice> slices;
  for (const Introduction& rank : all) slices.push_back(rank.slice);
  return slices;
}

}  // namespace lockstep
