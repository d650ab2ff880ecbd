// A backend that measures another one: forwards every op, waits until it is done (a device overlaps
// nothing then, and its ops take what they take alone), and adds up time, calls and, for
// products and attention, the bytes of weights or cache and the operations. For `lockstep bench`;
// the model does not know.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

// The calls of one op since Reset; of products, with matrices of one size.
struct OpTime {
  const char* op = "";
  int64_t outputs = 0, inputs = 0;  // of a product's matrix; 0: not a product
  int64_t calls = 0;
  int64_t ns = 0;  // of the thread that called, with the pool's threads inside
  // Of weights, a matrix counts once a call, however many rows it meets; so does what attention
  // reads of a sequence's cache.
  uint64_t bytes = 0;
  uint64_t operations = 0;  // two per weight and row; in attention per value of cache and head
};

// As little of a thread safety as any backend: one op at a time.
class TimedBackend final : public Backend {
 public:
  explicit TimedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // In the order of their first calls. Sizes beyond the room share the last entry, "others".
  std::span<const OpTime> times() const { return std::span(times_).first(count_); }
  void Reset() { count_ = 0; }
  // From now on ops are timed (as from the beginning), or only forwarded, without waiting.
  void SetTimed(bool timed) { timed_ = timed; }

  std::string name() const override { return inner_->name(); }
  ProductLoop product_loop() const override { return inner_->product_loop(); }
  std::optional<DeviceMemory> memory() const override { return inner_->memory(); }
  StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view what) const override {
    return inner_->Allocate(bytes, what);
  }
  Status Finish(Queue& queue) const override;
  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    return inner_->Pack(std::move(matrix));
  }
  void PackNext(HostMatrix* matrix) const override { inner_->PackNext(matrix); }
  StatusOr<std::unique_ptr<PackedMatrix>> Repack(
      std::unique_ptr<PackedMatrix> packed) const override {
    return inner_->Repack(std::move(packed));
  }
  uint64_t PackedBytes(const HostMatrix& shape) const override {
    return inner_->PackedBytes(shape);
  }
  uint64_t WorkBytes(const HostMatrix& shape) const override { return inner_->WorkBytes(shape); }
  void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
              int64_t rows, float* y, int64_t y_stride) const override;
  void GroupRows(Queue& queue, const RouterArgs& args, const ExpertGroups& groups) const override;
  void GroupedMatMul(Queue& queue, const PackedMatrix& weights, const ExpertGroups& groups,
                     const float* x, bool by_row, float* y, int64_t y_stride) const override;
  void Embed(Queue& queue, const PackedMatrix& table, int64_t first_row, const int32_t* tokens,
             int64_t rows, float* y) const override;
  void RmsNorm(Queue& queue, const float* x, const float* weight, double eps, int64_t rows,
               int64_t dim, float* y) const override;
  void AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight, double eps,
                  int64_t rows, int64_t dim, float* y) const override;
  void PrepareAttention(Queue& queue, const AttentionArgs& args) const override;
  void Attention(Queue& queue, const AttentionArgs& args) const override;
  void PrepareLatentAttention(Queue& queue, const LatentAttentionArgs& args) const override;
  void LatentAttention(Queue& queue, const LatentAttentionArgs& args) const override;
  void JoinHeads(Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override;
  void SiluMul(Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override;
  void Route(Queue& queue, const RouterArgs& args) const override;
  void CombineExperts(Queue& queue, const RouterArgs& args, const ExpertGroups& groups,
                      const float* expert_out, const float* shared, int64_t dim,
                      float* y) const override;

 private:
  // Allocates nothing, since a step must not.
  OpTime& Entry(const char* op, int64_t outputs, int64_t inputs) const;
  template <typename Body>
  OpTime& Time(Queue& queue, const char* op, const Body& body,
               const PackedMatrix* weights = nullptr) const;

  std::unique_ptr<Backend> inner_;
  bool timed_ = true;
  mutable OpTime untimed_;
  mutable std::array<OpTime, 64> times_{};
  mutable size_t count_ = 0;
  mutable Status fault_;  // the first one since the last Finish
};

}  // namespace lockstep::kernels
