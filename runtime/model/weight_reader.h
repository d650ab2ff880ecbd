// How the matrices of a model come from a checkpoint to this rank. The code that says which tensors
// a model has runs twice over the same statements: once to count the bytes, once to read them, so
// that the plan and what is allocated cannot differ.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/model/fused_matrix.h"
#include "runtime/tensor/page_toucher.h"
#include "runtime/weights/slice_loader.h"

namespace lockstep {

// Tensors [height, inputs] whose rows are sliced: one, or one for each matrix of a stack.
struct RowPart {
  std::vector<std::string> names;
  int64_t height = 0;
  Range rows;
};

// Tensors [height, width] whose columns are sliced: one, or one for each matrix of a stack.
struct ColumnPart {
  std::vector<std::string> names;
  int64_t height = 0;
  int64_t width = 0;
  std::vector<Range> columns;  // of every rank
};

class WeightReader {
 public:
  // Counts: nothing is read, packed matrices come back as nullptr and vectors empty. Missing and
  // misshapen tensors are errors here as well. Bytes are those that `backend` will keep; without
  // one, those of the portable layout.
  WeightReader(const Checkpoint& checkpoint, int rank, const kernels::Backend* backend = nullptr)
      : checkpoint_(checkpoint),
        rank_(rank),
        backend_(backend),
        copies_(backend != nullptr && backend->memory().has_value()) {}
  // Reads and packs. Collective where columns are read. Where processors have memory of their own
  // (NUMA), the threads of the pool touch what they will read first.
  WeightReader(SliceLoader& loader, const kernels::Backend& backend, ThreadPool& pool)
      : checkpoint_(loader.checkpoint()),
        rank_(loader.rank()),
        loader_(&loader),
        backend_(&backend),
        pool_(&pool) {}

  // Counting only: what would be read is appended to `requests`, in order, with empty slices too.
  void RecordTo(std::vector<SliceRequest>* requests) { requests_ = requests; }
  // Which tensors are copies of others, shared by the readers of one checkpoint; may be nullptr.
  void ShareKnownCopies(std::map<std::string, bool>* known) { known_copies_ = known; }
  std::map<std::string, bool>* known_copies() const { return known_copies_; }
  bool counting() const { return loader_ == nullptr; }
  int rank() const { return rank_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  // Of all weights so far: in memory, and read for one token (in the portable layout).
  uint64_t bytes() const { return bytes_; }
  uint64_t bytes_per_token() const { return static_cast<uint64_t>(bytes_per_token_); }
  // What the backend needs for products with them (Backend::WorkBytes), and the most memory that
  // tensors pass through on their way: with a device the largest matrix too, from which it copies.
  uint64_t work_bytes() const { return work_bytes_; }
  uint64_t staging_bytes() const { return staging_bytes_ + copied_bytes_; }

  // The parts over one another; neighbours of equal format become one matrix. `read_per_token` is
  // the part of the bytes that a token reads; `what` is for errors.
  StatusOr<FusedMatrix> Rows(const std::vector<RowPart>& parts, int64_t inputs, const char* what,
                             double read_per_token = 1);
  // One tensor's rows.
  StatusOr<PackedPtr> Rows(const RowPart& part, int64_t inputs, const char* what,
                           double read_per_token = 1);
  // This rank's columns. A quantized matrix that the cuts do not fit becomes F32, exactly.
  StatusOr<PackedPtr> Columns(const ColumnPart& part, const char* what, double read_per_token = 1);
  // For matrices that are made of others: a matrix of this shape, one tensor's rows as they are
  // stored, and what Rows does at its end with a matrix that is ready. When counting, none of them
  // has data.
  StatusOr<HostMatrix> Allocate(const WeightFormat& format, int64_t count, int64_t outputs,
                                int64_t inputs, const char* what);
  StatusOr<HostMatrix> HostRows(const RowPart& part, int64_t inputs, const char* what);
  StatusOr<PackedPtr> Pack(HostMatrix matrix, const char* what, double read_per_token = 1);
  // The tensor has its place in the forward pass, but on another rank.
  void Skip(const std::string& name) {
    used_.insert(name);
    if (checkpoint_.Find(name) != nullptr) Record(name, SliceKind::kRows, {});
  }
  // The tensor says what another one says: it is not read and in no file of a rank.
  void LeaveOut(const std::string& name) { used_.insert(name); }
  // The tensors of the checkpoint that nothing asked for so far.
  std::vector<std::string> Unused() const;
  // Elements of a vector of `length`, as float32.
  StatusOr<std::vector<float>> Vector(const std::string& name, int64_t length, Range elements);
  StatusOr<std::vector<float>> Vector(const std::string& name, int64_t length) {
    return Vector(name, length, Range{0, length});
  }

 private:
  // What rows pass through while they are read, whatever their number.
  static constexpr uint64_t kChunkBytes = SliceLoader::kThreadBytes;

  void Record(const std::string& name, SliceKind kind, Range range) {
    used_.insert(name);
    if (requests_ != nullptr) requests_->push_back({name, {kind, range}});
  }
  Status Count(const HostMatrix& shape, const char* what, double read_per_token);
  void CountVector(Range elements);
  // What the tensor passes through on its way to `format`: nothing if it is stored as this slice,
  // otherwise `bytes`.
  void CountStaging(const std::string& name, const WeightFormat& format, uint64_t bytes);
  StatusOr<HostMatrix> AllocateLike(const HostMatrix& shape, const char* what);
  StatusOr<PackedPtr> PackAsPlanned(HostMatrix matrix) const;
  StatusOr<PackedPtr> RowMatrix(const std::vector<const RowPart*>& parts, const HostMatrix& shape,
                                const char* what);

  const Checkpoint& checkpoint_;
  int rank_;
  SliceLoader* loader_ = nullptr;
  const kernels::Backend* backend_ = nullptr;
  bool copies_ = false;  // counting for a device
  ThreadPool* pool_ = nullptr;
  std::vector<SliceRequest>* requests_ = nullptr;
  std::map<std::string, bool>* known_copies_ = nullptr;
  std::set<std::string> used_;
  uint64_t bytes_ = 0;
  double bytes_per_token_ = 0;
  uint64_t work_bytes_ = 0;
  uint64_t staging_bytes_ = kChunkBytes;
  uint64_t copied_bytes_ = 0;
  PageToucher toucher_;  // of the matrix that was allocated last
};

}  // namespace lockstep
