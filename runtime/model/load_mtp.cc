// The draft layer (MTP): from its tensors to one rank's packed weights. Names: those of GLM-4.5's
// and GLM-4.7's checkpoints, where it is the layer behind the last one.
#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/model/tensor_groups.h"
#include "runtime/model/weights.h"
#include "runtime/weights/stored_rows.h"

namespace lockstep {
namespace {

// Rows of a copy that are compared with the original, spread evenly over all, and the last ones,
// where a vocabulary that grew has its new tokens. A layer trained with a table of its own differs
// from the first row on, and a row that were missed could cost the quality of a draft alone, never
// a token that is answered.
constexpr int64_t kComparedRows = 1024;
constexpr int64_t kComparedLastRows = 512;

// The tensor as its file has it, whatever it is brought to on the way.
const TensorInfo& OriginalOf(const TensorInfo& info) {
  return info.original != nullptr ? *info.original : info;
}

std::vector<int64_t> SpreadRows(int64_t height) {
  const int64_t count = std::min(height, kComparedRows);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i)
    rows.push_back(count == height ? i : i * (height - 1) / (count - 1));
  return rows;
}

// All at once: one read after another takes minutes where each is a request over a network.
Status ReadPlainRows(const TensorInfo& info, const std::vector<int64_t>& rows, uint64_t row_bytes,
                     std::vector<std::byte>* to) {
  to->resize(rows.size() * row_bytes);
  std::vector<FilePart> parts;
  for (size_t i = 0; i < rows.size(); ++i) {
    parts.push_back({info.data.offset + static_cast<uint64_t>(rows[i]) * row_bytes,
                     std::span(*to).subspan(i * row_bytes, row_bytes)});
  }
  return info.data.file->ReadParts(parts);
}

// Whether two tensors say the same in the same format: by the same rows on every rank.
StatusOr<bool> AreEqual(const Checkpoint& checkpoint, const RowPart& one, const RowPart& other,
                        int64_t inputs) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* found,
                            FindShaped(checkpoint, one.names[0], {one.height, inputs}));
  const TensorInfo& first = OriginalOf(*found);
  LOCKSTEP_ASSIGN_OR_RETURN(found, FindShaped(checkpoint, other.names[0], {other.height, inputs}));
  const TensorInfo& second = OriginalOf(*found);
  if (first.format != second.format) return false;
  StoredRowReader reader({});
  const uint64_t row_bytes = LayoutOf(first.format, inputs, 0).row_bytes;
  std::vector<std::byte> of_first, of_second;
  const auto equal = [&](Range range) -> StatusOr<bool> {
    of_first.resize(static_cast<uint64_t>(range.size()) * row_bytes);
    of_second.resize(of_first.size());
    LOCKSTEP_RETURN_IF_ERROR(reader.Read(first, one.names[0], range, of_first.data()));
    LOCKSTEP_RETURN_IF_ERROR(reader.Read(second, other.names[0], range, of_second.data()));
    return of_first == of_second;
  };
  // A table of its own shows in its first row.
  LOCKSTEP_ASSIGN_OR_RETURN(bool same, equal({0, std::min<int64_t>(1, one.height)}));
  if (!same) return false;
  LOCKSTEP_ASSIGN_OR_RETURN(
      same, equal({std::max<int64_t>(0, one.height - kComparedLastRows), one.height}));
  if (!same) return false;
  const std::vector<int64_t> rows = SpreadRows(one.height);
  if (first.storage == Storage::kPlain && second.storage == Storage::kPlain) {
    LOCKSTEP_RETURN_IF_ERROR(ReadPlainRows(first, rows, row_bytes, &of_first));
    LOCKSTEP_RETURN_IF_ERROR(ReadPlainRows(second, rows, row_bytes, &of_second));
    return of_first == of_second;
  }
  for (const int64_t row : rows) {
    LOCKSTEP_ASSIGN_OR_RETURN(same, equal({row, row + 1}));
    if (!same) return false;
  }
  return true;
}

// Every rank of a plan asks the same; it is read once.
StatusOr<bool> AreEqualOnce(WeightReader& reader, const RowPart& one, const RowPart& other,
                            int64_t inputs) {
  std::map<std::string, bool>* known = reader.known_copies();
  if (known != nullptr) {
    const auto found = known->find(one.names[0]);
    if (found != known->end()) return found->second;
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const bool equal, AreEqual(reader.checkpoint(), one, other, inputs));
  if (known != nullptr) known->emplace(one.names[0], equal);
  return equal;
}

// GLM-4.5's and GLM-4.7's files hold copies of the embedding and of the head in this layer,
// GLM-4.6's do not. What equals the main model's is not loaded again (1.6 GB each for GLM-4.7):
// nullptr. Files of ranks hold a copy only if it is none.
StatusOr<PackedPtr> LoadUnlessEqual(WeightReader& reader, const RowPart& copy, const RowPart& main,
                                    int64_t inputs, const char* what) {
  const std::string& name = copy.names[0];
  const TensorInfo* info = reader.checkpoint().Find(name);
  if (info == nullptr) return PackedPtr();
  if (info->slice.has_value()) return reader.Rows(copy, inputs, what);
  LOCKSTEP_ASSIGN_OR_RETURN(const bool equal, AreEqualOnce(reader, copy, main, inputs));
  if (!equal) return reader.Rows(copy, inputs, what);
  reader.LeaveOut(name);
  return PackedPtr();
}

std::string JoinName(const ModelConfig& config) {
  return kLayerPrefix + std::to_string(config.num_hidden_layers) + ".eh_proj.weight";
}

}  // namespace

bool HasDraftLayer(const ModelConfig& config, const Checkpoint& checkpoint) {
  return config.num_nextn_predict_layers > 0 && checkpoint.Find(JoinName(config)) != nullptr;
}

StatusOr<DraftLayer> LoadDraftLayer(WeightReader& reader, const ModelConfig& config,
                                    const Cuts& cuts) {
  const std::string& path = reader.checkpoint().path();
  if (config.num_nextn_predict_layers < 1) {
    return ModelError("%s: the model has no layer for drafts (num_nextn_predict_layers is 0)",
                      path);
  }
  const auto rank = static_cast<size_t>(reader.rank());
  const int64_t hidden = config.hidden_size;
  const std::string prefix = kLayerPrefix + std::to_string(config.num_hidden_layers) + ".";
  const RowPart join{{JoinName(config)}, hidden, cuts.draft_rows[rank]};
  if (reader.checkpoint().Find(join.names[0]) == nullptr) {
    return ModelError(
        "%s: tensor %s is missing, and with it the layer for drafts that the model's configuration "
        "announces; fetch mtp.safetensors if the checkpoint has one (of files of ranks: before "
        "lockstep shard), or "
        "do without drafts",
        path, join.names[0]);
  }
  DraftLayer draft;
  LOCKSTEP_ASSIGN_OR_RETURN(draft.embedding_norm, reader.Vector(prefix + "enorm.weight", hidden));
  LOCKSTEP_ASSIGN_OR_RETURN(draft.hidden_norm, reader.Vector(prefix + "hnorm.weight", hidden));
  LOCKSTEP_ASSIGN_OR_RETURN(draft.final_norm,
                            reader.Vector(prefix + "shared_head.norm.weight", hidden));
  LOCKSTEP_ASSIGN_OR_RETURN(draft.join, reader.Rows(join, 2 * hidden, "draft layer"));
  RowPart copy{{prefix + "embed_tokens.weight"}, config.vocab_size, cuts.vocab[rank]};
  RowPart main{{"model.embed_tokens.weight"}, config.vocab_size, cuts.vocab[rank]};
  LOCKSTEP_ASSIGN_OR_RETURN(draft.embedding,
                            LoadUnlessEqual(reader, copy, main, hidden, "draft embedding"));
  copy.names = {prefix + "shared_head.head.weight"};
  if (!config.tie_word_embeddings) main.names = {"lm_head.weight"};
  LOCKSTEP_ASSIGN_OR_RETURN(draft.head, LoadUnlessEqual(reader, copy, main, hidden, "draft head"));
  LOCKSTEP_ASSIGN_OR_RETURN(draft.layer, LoadLayer(reader, config, cuts, config.num_hidden_layers));
  return draft;
}

}  // namespace lockstep
