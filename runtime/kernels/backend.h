// The op table: everything that the model computes, by the names that every backend uses. `ref` is
// the plain definition of each op; `cpu` computes the same with SIMD. Activations are float32,
// row-major, in memory that the host sees and the caller owns: what an op writes, and what lasts
// longer than a step, comes from Allocate. The backend's own is what Pack makes, opaque to all
// others, and what products need besides (WorkBytes).
//
// An op may return before it is done. The ops of a queue are done in the order of their calls, and
// until Finish the host neither reads nor writes what they use.
//
// The promise of every op: a row's result depends on that row's inputs alone, bit for bit. It does
// not change with the number of rows, with how a prompt was cut into steps, or with the number of
// threads. (docs/numerics.md)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/attention.h"
#include "runtime/kernels/device_name.h"
#include "runtime/kernels/product_loop.h"
#include "runtime/tensor/buffer.h"
#include "runtime/tensor/matrix.h"

namespace lockstep::kernels {

// More routed experts than any checkpoint has; configurations above it are refused.
inline constexpr int64_t kMaxExperts = 1024;

// Where ops run: for CPU backends the rank's threads.
struct Queue {
  ThreadPool* pool = nullptr;
};

// A weight matrix (or stack of them) in the layout of the backend that packed it.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int64_t count() const { return count_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  uint64_t bytes() const { return bytes_; }

 protected:
  PackedMatrix(int64_t count, int64_t outputs, int64_t inputs, uint64_t bytes)
      : count_(count), outputs_(outputs), inputs_(inputs), bytes_(bytes) {}

 private:
  int64_t count_, outputs_, inputs_;
  uint64_t bytes_;
};

// Assignments [begin, end) use matrix `matrix` of a stack.
struct RowGroup {
  int32_t matrix = 0;
  int32_t begin = 0;
  int32_t end = 0;
};

// The (row, slot) pairs of a step ordered by the expert they go to. Host memory of the caller,
// sized for the largest step. GroupRows fills it, or the caller itself where groups are known
// beforehand (the heads of latent attention); after that only the backend reads it.
struct ExpertGroups {
  RowGroup* groups = nullptr;  // [experts], the first *group_count are used
  int32_t* group_count = nullptr;
  int32_t* row_of = nullptr;         // [rows * top_k] row of each assignment
  int32_t* assignment_of = nullptr;  // [rows, top_k] assignment of each (row, slot)
};

struct RouterArgs {
  int64_t rows = 0;
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  bool normalize = true;
  float scale = 1;
  const float* logits = nullptr;      // [rows, experts]
  const float* correction = nullptr;  // [experts]
  int32_t* chosen = nullptr;          // [rows, top_k] largest weight first, ties by lower index
  float* weights = nullptr;           // [rows, top_k]
};

// How products with quantized weights see the activations.
enum class Precision {
  kExact,  // as float32
  // As blocks of 32 8-bit integers with a float32 scale (docs/numerics.md), where the backend has a
  // kernel for the weights' format; float32 otherwise. `ref` is always exact.
  kFast,
};

// The memory of a device.
struct DeviceMemory {
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;  // now, beside whatever others hold there
  // Whether it is the host's too (GB10): then what the host needs comes out of it.
  bool of_host = false;
};

// Serves one rank: its ops share memory of the backend, so only one runs at a time.
class Backend {
 public:
  virtual ~Backend() = default;
  // "ref", "cpu/avx512" or, in Precision::kFast, "cpu/avx512+q8": part of the handshake, since
  // other instruction sets and precisions may give other bits.
  virtual std::string name() const = 0;
  // The instruction that most products with several rows are made of, for MeasurePeak (roofline.h).
  // A device's is none that a thread of the host can repeat: without `run`.
  virtual ProductLoop product_loop() const = 0;
  // The device's, where there is one; nothing: ops work in memory of the host.
  virtual std::optional<DeviceMemory> memory() const { return std::nullopt; }

  // Zeroed memory for what ops read and write, at least 64-byte aligned, which the host sees as
  // well. `what` names its owner in the error when memory runs out. Not while an op runs.
  virtual StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view what) const {
    return Buffer::Allocate(bytes, what);
  }
  // Waits until every op put on the queue is done: from then on the host may touch what they used.
  // The first fault since the last call; a device that does not come to an end within a deadline of
  // the backend's is one. After a fault nothing that ops wrote is worth anything.
  virtual Status Finish(Queue& /*queue*/) const { return OkStatus(); }

  // Takes the matrix over in the layout that MatMul wants, in its own memory (a copy of at most
  // sixteen rows is made on the way). Not while an op runs.
  virtual StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const = 0;
  // What Pack would do to the next matrix of a stack (HostMatrix::packed), now that its rows are
  // complete and not written to again: so that a disk need not wait for Pack at the end. May leave
  // all to Pack. Not while an op runs.
  virtual void PackNext(HostMatrix* matrix) const = 0;
  // Pack, of a matrix that a backend of the same instruction set packed in kExact, in its place.
  virtual StatusOr<std::unique_ptr<PackedMatrix>> Repack(
      std::unique_ptr<PackedMatrix> packed) const = 0;
  // For the plan of memory, before there is any: PackedMatrix::bytes of what Pack would make of a
  // matrix of this shape (which has no data); and bytes of the memory that products with it need
  // besides. All matrices share that: the largest value counts.
  virtual uint64_t PackedBytes(const HostMatrix& shape) const = 0;
  virtual uint64_t WorkBytes(const HostMatrix& shape) const = 0;

  // y[r * y_stride + n] = bias[n] + sum over k of x[r, k] * w[n, k]. bias may be nullptr. x [rows,
  // inputs]; y_stride >= outputs.
  virtual void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
                      int64_t rows, float* y, int64_t y_stride) const = 0;
  // Orders the assignments by expert, rows ascending within one. chosen [rows, top_k] from Route.
  virtual void GroupRows(Queue& queue, const RouterArgs& args,
                         const ExpertGroups& groups) const = 0;
  // For every assignment a of every group: y[a * y_stride ...] = w[group.matrix] x[row], where row
  // is row_of[a] if `by_row` and a itself if not.
  virtual void GroupedMatMul(Queue& queue, const PackedMatrix& weights, const ExpertGroups& groups,
                             const float* x, bool by_row, float* y, int64_t y_stride) const = 0;
  // y[r] = the row of the table whose global index is tokens[r], zeros if this rank does not hold
  // it. The table's first row has global index first_row.
  virtual void Embed(Queue& queue, const PackedMatrix& table, int64_t first_row,
                     const int32_t* tokens, int64_t rows, float* y) const = 0;
  // y[r] = weight * x[r] / sqrt(mean(x[r]^2) + eps).
  virtual void RmsNorm(Queue& queue, const float* x, const float* weight, double eps, int64_t rows,
                       int64_t dim, float* y) const = 0;
  // x[r] += delta[r], then y[r] = RmsNorm(x[r]). The first is one float32 addition for each value:
  // x has the same bits from every backend (ADR 35).
  virtual void AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight,
                          double eps, int64_t rows, int64_t dim, float* y) const = 0;
  // Norms queries and keys per head, turns their leading rotary_dim dimensions (pairs i, i +
  // rotary_dim / 2), and writes keys and values into the pages.
  virtual void PrepareAttention(Queue& queue, const AttentionArgs& args) const = 0;
  // Causal softmax(q k / sqrt(head_dim)) v over positions 0 .. positions[r] of the row's sequence.
  virtual void Attention(Queue& queue, const AttentionArgs& args) const = 0;
  // Norms latents, turns the rotated key and the rotated part of queries (pairs 2i, 2i + 1), both
  // in place, writes latents and keys into the pages, and parts the queries into plain_queries and
  // rotated_queries.
  virtual void PrepareLatentAttention(Queue& queue, const LatentAttentionArgs& args) const = 0;
  // Causal softmax((absorbed . latent + rotated . key) / sqrt(nope_dim + rope_dim)) latent over
  // positions 0 .. positions[r] of the row's sequence.
  virtual void LatentAttention(Queue& queue, const LatentAttentionArgs& args) const = 0;
  // y[r, h] = x[h, r]: what heads computed, side by side in each row. x [heads, rows, dim].
  virtual void JoinHeads(Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                         float* y) const = 0;
  // out[r, i] = silu(gate_up[r, i]) * gate_up[r, columns + i].
  virtual void SiluMul(Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
                       float* out) const = 0;
  // Sigmoid router: the choice by score + correction (within the best groups), the weights by
  // score.
  virtual void Route(Queue& queue, const RouterArgs& args) const = 0;
  // y[r] = sum over slots s of weights[r, s] * expert_out[assignment_of[r, s]], added in slot
  // order, + shared[r] (nullptr: 0).
  virtual void CombineExperts(Queue& queue, const RouterArgs& args, const ExpertGroups& groups,
                              const float* expert_out, const float* shared, int64_t dim,
                              float* y) const = 0;
};

// "ref", "cpu" (the best instruction set of this machine), "cpu/<set>", or "auto" (cpu).
StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name,
                                               Precision precision = Precision::kExact);
// On a device; of those of the host, that of `name`. Another device has one set of kernels: "auto".
StatusOr<std::unique_ptr<Backend>> MakeBackendOn(const DeviceName& device, std::string_view name,
                                                 Precision precision);

// What GroupRows does where the choices are in host memory.
void GroupRowsOnHost(const RouterArgs& args, const ExpertGroups& groups);

// The constructors of the backends' folders.
std::unique_ptr<Backend> MakeRefBackend();
StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(std::string_view instruction_set,
                                                  Precision precision);
// On GPU `device`, as CUDA numbers them. An error says what is missing and what to do: a build with
// CUDA (absent.cc), a driver, a GPU of that number, one that the kernels were compiled for.
StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, Precision precision);

}  // namespace lockstep::kernels
