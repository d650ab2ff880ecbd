// Reads one rank's slices of a checkpoint into host matrices in the portable layout, exactly the
// bytes of its share.
//
// Row slices (q, k, v, gate, up, embedding, head) are contiguous in the file and read in place.
// Column slices (o_proj, down_proj) are not: the ranks split the *rows* by their shares, each reads
// its rows whole, and they swap the column segments through the group, so that no byte is read
// twice by anyone. All methods that take columns are collective: every rank calls the same ones in
// the same order, with empty slices too.
//
// Where a tensor is stored as this rank's slice (lockstep shard), the slice is read as it is and
// nobody exchanges anything.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/tensor/matrix.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/partition.h"
#include "runtime/weights/stored_rows.h"

namespace lockstep {

// The tensor, which must be there with this shape and be of a type that this build reads.
StatusOr<const TensorInfo*> FindShaped(const Checkpoint& checkpoint, const std::string& name,
                                       const std::vector<int64_t>& shape);

// The format of the named tensors if all have the same; F32, which holds all of them exactly, if
// they differ.
StatusOr<WeightFormat> CommonFormat(const Checkpoint& checkpoint,
                                    const std::vector<std::string>& names);

// Whether rows of `width` weights can be cut to these columns without taking blocks apart.
bool CutsFit(const WeightFormat& format, int64_t width, const std::vector<Range>& columns);

// The reads of `rank` that these requests will take, in about their order.
std::vector<PlannedRead> PlanReads(const Checkpoint& checkpoint, const std::vector<double>& shares,
                                   int rank, const std::vector<SliceRequest>& requests);

class SliceLoader {
 public:
  // What rows pass through on a thread while they are read.
  static constexpr uint64_t kThreadBytes = uint64_t{8} << 20;

  // `progress` is called with the bytes read so far. With a pool, its threads share the rows of a
  // matrix: where bringing them to their format takes longer than reading them. All references must
  // outlive the loader.
  SliceLoader(const Checkpoint& checkpoint, Group& group, std::vector<double> shares,
              std::function<void(uint64_t)> progress, ThreadPool* pool = nullptr);

  // Begins to read what these requests will take, in their order, before they are made, in
  // ReadAhead::BytesFor(PlanReads(...)) of memory until the loader ends.
  Status ReadAheadFor(const std::vector<SliceRequest>& requests);
  const Checkpoint& checkpoint() const { return checkpoint_; }
  // As the files store them, scales included.
  uint64_t bytes_read() const;
  int rank() const { return group_.rank(); }

  // Rows [rows.begin, rows.end) of a [height, width] tensor into matrix `index` of `to`, from its
  // row `at` on. `to` has the tensor's format or F32.
  Status ReadRows(const std::string& name, int64_t height, Range rows, HostMatrix* to,
                  int64_t index, int64_t at);
  // Columns columns[rank] of a [height, width] tensor into matrix `index` of `to`. `to` has the
  // tensor's format, if the cuts fit it, and the phase of its first column; or F32. Collective.
  Status ReadColumns(const std::string& name, int64_t width, const std::vector<Range>& columns,
                     HostMatrix* to, int64_t index);
  // Elements of a vector of `length`, as float32. The tensor holds plain numbers.
  StatusOr<std::vector<float>> ReadVector(const std::string& name, int64_t length, Range elements);

 private:
  // The stored slice of a tensor as rows of `format`, its own or F32; an error if it is not the
  // slice that this rank needs.
  Status ReadStoredSlice(const WeightFormat& format, const TensorInfo& info,
                         const std::string& name, const TensorSlice& needed, std::byte* to);
  // What one thread reads with.
  struct Lane {
    StoredRowReader reader;
    std::vector<std::byte> own_format;  // rows whose format changes
  };
  // Rows of a tensor as rows of `format`, its own or F32: on all threads, and on one.
  Status ReadAs(const WeightFormat& format, const TensorInfo& info, const std::string& name,
                Range rows, std::byte* to);
  static Status ReadOnLane(Lane& lane, const WeightFormat& format, const TensorInfo& info,
                           const std::string& name, Range rows, std::byte* to);

  const Checkpoint& checkpoint_;
  Group& group_;
  std::vector<double> shares_;
  std::function<void(uint64_t)> progress_;
  ThreadPool* pool_;
  std::unique_ptr<ReadAhead> ahead_;
  std::vector<Lane> lanes_;                    // one a thread, at least one
  std::vector<std::byte> rows_;                // whole rows of a column-sliced tensor
  std::vector<std::vector<std::byte>> sends_;  // column segments for each rank
};

}  // namespace lockstep
