// How the matrices of a model come from a checkpoint to this rank. The code that says which tensors
// a model has runs twice over the same statements: once to count the bytes, once to read them, so
// that the plan and what is allocated cannot differ.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/model/fused_matrix.h"
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
  // misshapen tensors are errors here as well.
  WeightReader(const Checkpoint& checkpoint, int rank) : checkpoint_(checkpoint), rank_(rank) {}
  // Reads and packs. Collective where columns are read.
  WeightReader(SliceLoader& loader, const kernels::Backend& backend)
      : checkpoint_(loader.checkpoint()),
        rank_(loader.rank()),
        loader_(&loader),
        backend_(&backend) {}

  // Counting only: what would be read is appended to `requests`, in order, with empty slices too.
  void RecordTo(std::vector<SliceRequest>* requests) { requests_ = requests; }
  bool counting() const { return loader_ == nullptr; }
  int rank() const { return rank_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  // Of all matrices so far: in memory, in the portable layout; and read for one token.
  uint64_t bytes() const { return bytes_; }
  uint64_t bytes_per_token() const { return static_cast<uint64_t>(bytes_per_token_); }

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
    if (!counting()) loader_->Skip(name);
    if (checkpoint_.Find(name) != nullptr) Record(name, SliceKind::kRows, {});
  }
  // Elements of a vector of `length`, as float32.
  StatusOr<std::vector<float>> Vector(const std::string& name, int64_t length, Range elements);
  StatusOr<std::vector<float>> Vector(const std::string& name, int64_t length) {
    return Vector(name, length, Range{0, length});
  }

 private:
  void Record(const std::string& name, SliceKind kind, Range range) {
    if (requests_ != nullptr) requests_->push_back({name, {kind, range}});
  }
  Status Count(const HostMatrix& shape, const char* what, double read_per_token);
  StatusOr<PackedPtr> RowMatrix(const std::vector<const RowPart*>& parts, const HostMatrix& shape,
                                const char* what);

  const Checkpoint& checkpoint_;
  int rank_;
  SliceLoader* loader_ = nullptr;
  const kernels::Backend* backend_ = nullptr;
  std::vector<SliceRequest>* requests_ = nullptr;
  uint64_t bytes_ = 0;
  double bytes_per_token_ = 0;
};

}  // namespace lockstep
