// A backend that forwards everything to another one, for those that change a little of it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/kernels/backend.h"

namespace lockstep::testing {

class ForwardingBackend : public kernels::Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<kernels::Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  kernels::ProductLoop product_loop() const override { return inner_->product_loop(); }
  std::optional<kernels::DeviceMemory> memory() const override { return inner_->memory(); }
  StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view what) const override {
    return inner_->Allocate(bytes, what);
  }
  Status Finish(kernels::Queue& queue) const override { return inner_->Finish(queue); }
  StatusOr<std::unique_ptr<kernels::PackedMatrix>> Pack(HostMatrix matrix) const override {
    return inner_->Pack(std::move(matrix));
  }
  void PackNext(HostMatrix* matrix) const override { inner_->PackNext(matrix); }
  StatusOr<std::unique_ptr<kernels::PackedMatrix>> Repack(
      std::unique_ptr<kernels::PackedMatrix> packed) const override {
    return inner_->Repack(std::move(packed));
  }
  uint64_t PackedBytes(const HostMatrix& shape) const override {
    return inner_->PackedBytes(shape);
  }
  uint64_t WorkBytes(const HostMatrix& shape) const override { return inner_->WorkBytes(shape); }
  void MatMul(kernels::Queue& queue, const kernels::PackedMatrix& weights, const float* bias,
              const float* x, int64_t rows, float* y, int64_t y_stride) const override {
    inner_->MatMul(queue, weights, bias, x, rows, y, y_stride);
  }
  void GroupRows(kernels::Queue& queue, const kernels::RouterArgs& args,
                 const kernels::ExpertGroups& groups) const override {
    inner_->GroupRows(queue, args, groups);
  }
  void GroupedMatMul(kernels::Queue& queue, const kernels::PackedMatrix& weights,
                     const kernels::ExpertGroups& groups, const float* x, bool by_row, float* y,
                     int64_t y_stride) const override {
    inner_->GroupedMatMul(queue, weights, groups, x, by_row, y, y_stride);
  }
  void Embed(kernels::Queue& queue, const kernels::PackedMatrix& table, int64_t first_row,
             const int32_t* tokens, int64_t rows, float* y) const override {
    inner_->Embed(queue, table, first_row, tokens, rows, y);
  }
  void RmsNorm(kernels::Queue& queue, const float* x, const float* weight, double eps, int64_t rows,
               int64_t dim, float* y) const override {
    inner_->RmsNorm(queue, x, weight, eps, rows, dim, y);
  }
  void AddRmsNorm(kernels::Queue& queue, float* x, const float* delta, const float* weight,
                  double eps, int64_t rows, int64_t dim, float* y) const override {
    inner_->AddRmsNorm(queue, x, delta, weight, eps, rows, dim, y);
  }
  void PrepareAttention(kernels::Queue& queue, const kernels::AttentionArgs& args) const override {
    inner_->PrepareAttention(queue, args);
  }
  void Attention(kernels::Queue& queue, const kernels::AttentionArgs& args) const override {
    inner_->Attention(queue, args);
  }
  void PrepareLatentAttention(kernels::Queue& queue,
                              const kernels::LatentAttentionArgs& args) const override {
    inner_->PrepareLatentAttention(queue, args);
  }
  void LatentAttention(kernels::Queue& queue,
                       const kernels::LatentAttentionArgs& args) const override {
    inner_->LatentAttention(queue, args);
  }
  void JoinHeads(kernels::Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override {
    inner_->JoinHeads(queue, x, heads, rows, dim, y);
  }
  void SiluMul(kernels::Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override {
    inner_->SiluMul(queue, gate_up, rows, columns, out);
  }
  void Route(kernels::Queue& queue, const kernels::RouterArgs& args) const override {
    inner_->Route(queue, args);
  }
  void CombineExperts(kernels::Queue& queue, const kernels::RouterArgs& args,
                      const kernels::ExpertGroups& groups, const float* expert_out,
                      const float* shared, int64_t dim, float* y) const override {
    inner_->CombineExperts(queue, args, groups, expert_out, shared, dim, y);
  }

 protected:
  std::unique_ptr<kernels::Backend> inner_;
};

}  // namespace lockstep::testing
