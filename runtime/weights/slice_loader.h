// Reads one rank's slices of a checkpoint into host matrices, exactly the bytes of its share.
//
// Row slices (q, k, v, gate, up, embedding, head) are contiguous in the file and read in place.
// Column slices (o_proj, down_proj) are not: the ranks split the *rows* by their shares, each reads
// its rows whole, and they swap the column segments through the group, so that no byte is read
// twice by anyone. All methods that take a group call are collective: every rank calls the same
// ones in the same order, with empty slices too.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/tensor/matrix.h"
#include "runtime/weights/partition.h"
#include "runtime/weights/safetensors.h"

namespace lockstep {

class SliceLoader {
 public:
  // `progress` is called with the bytes read so far. All references must outlive the loader.
  SliceLoader(const Checkpoint& checkpoint, Group& group, std::vector<double> shares,
              std::function<void(uint64_t)> progress);

  uint64_t bytes_read() const { return bytes_read_; }
  int rank() const { return group_.rank(); }
  // The tensors of the checkpoint that nothing asked for so far.
  std::vector<std::string> Unused() const;

  // The type of the named tensors if all have the same; F32 if they differ. They must be BF16, F16
  // or F32.
  StatusOr<DType> CommonType(const std::vector<std::string>& names) const;

  // Rows [rows.begin, rows.end) of a [height, width] tensor into matrix `index` of `to`, from its
  // row `at` on.
  Status ReadRows(const std::string& name, int64_t height, Range rows, HostMatrix* to,
                  int64_t index, int64_t at);
  // Columns columns[rank] of a [height, width] tensor into matrix `index` of `to`. Collective.
  Status ReadColumns(const std::string& name, int64_t width, const std::vector<Range>& columns,
                     HostMatrix* to, int64_t index);
  // Elements of a vector of `length`, as float32.
  StatusOr<std::vector<float>> ReadVector(const std::string& name, int64_t length, Range elements);

 private:
  StatusOr<const TensorInfo*> FindShaped(const std::string& name,
                                         const std::vector<int64_t>& shape) const;
  // Reads elements [begin, begin + count) of a tensor into `to` as `type`; refuses values that are
  // not finite.
  Status ReadElements(const TensorInfo& info, const std::string& name, int64_t begin, int64_t count,
                      DType type, std::byte* to);

  const Checkpoint& checkpoint_;
  Group& group_;
  std::vector<double> shares_;
  mutable std::set<std::string> used_;
  std::function<void(uint64_t)> progress_;
  uint64_t bytes_read_ = 0;
  std::vector<std::byte> raw_;                 // as read, when the type changes
  std::vector<std::byte> rows_;                // whole rows of a column-sliced tensor
  std::vector<std::vector<std::byte>> sends_;  // column segments for each rank
};

}  // namespace lockstep
