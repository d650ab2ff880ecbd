// A backend as late as a device may be: it notes every op and computes none before Finish. A model
// that reads what an op wrote, or overwrites what one still reads, without a Finish between them
// gives other bits here; with the guard, touching memory of Allocate meanwhile ends the process.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/check.h"
#include "tests/support/forwarding_backend.h"

namespace lockstep::testing {

struct DeferredOptions {
  // Nobody but ops touches memory of Allocate as long as one is waiting. Not for steps in halves,
  // where one half is exchanged while the other is computed.
  bool guard = false;
  // Of the calls of Finish that find ops waiting, from 1 on: the one that does nothing, and the one
  // that fails; 0: none.
  int forgotten = 0;
  int failing = 0;
};

class DeferredBackend final : public ForwardingBackend {
 public:
  DeferredBackend(std::unique_ptr<kernels::Backend> inner, DeferredOptions options)
      : ForwardingBackend(std::move(inner)), options_(options) {}

  // Calls of Finish that found ops waiting.
  int finishes() const { return finishes_; }
  uint64_t allocated_bytes() const { return allocated_bytes_; }

  StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view /*what*/) const override {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t whole = (bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LOCKSTEP_CHECK(memory != MAP_FAILED);
    allocated_bytes_ += bytes;
    memory_.push_back({memory, whole});
    return Buffer::Adopt(static_cast<std::byte*>(memory), bytes,
                         [](std::byte* data, uint64_t size) {
                           const auto unit = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
                           munmap(data, (size + unit - 1) / unit * unit);
                         });
  }

  Status Finish(kernels::Queue&) const override {
    if (waiting_.empty()) return OkStatus();
    ++finishes_;
    if (finishes_ == options_.forgotten) return OkStatus();
    Open(true);
    if (finishes_ == options_.failing) {
      waiting_.clear();
      return InternalError("the device gave up");
    }
    for (const auto& op : waiting_) op();
    waiting_.clear();
    return OkStatus();
  }

  StatusOr<std::unique_ptr<kernels::PackedMatrix>> Pack(HostMatrix matrix) const override {
    EXPECT_TRUE(waiting_.empty());
    return inner_->Pack(std::move(matrix));
  }
  StatusOr<std::unique_ptr<kernels::PackedMatrix>> Repack(
      std::unique_ptr<kernels::PackedMatrix> packed) const override {
    EXPECT_TRUE(waiting_.empty());
    return inner_->Repack(std::move(packed));
  }
  void MatMul(kernels::Queue& queue, const kernels::PackedMatrix& weights, const float* bias,
              const float* x, int64_t rows, float* y, int64_t y_stride) const override {
    Wait([=, this, &queue, &weights] {
      inner_->MatMul(queue, weights, bias, x, rows, y, y_stride);
    });
  }
  void GroupRows(kernels::Queue& queue, const kernels::RouterArgs& args,
                 const kernels::ExpertGroups& groups) const override {
    Wait([=, this, &queue] { inner_->GroupRows(queue, args, groups); });
  }
  void GroupedMatMul(kernels::Queue& queue, const kernels::PackedMatrix& weights,
                     const kernels::ExpertGroups& groups, const float* x, bool by_row, float* y,
                     int64_t y_stride) const override {
    Wait([=, this, &queue, &weights] {
      inner_->GroupedMatMul(queue, weights, groups, x, by_row, y, y_stride);
    });
  }
  void Embed(kernels::Queue& queue, const kernels::PackedMatrix& table, int64_t first_row,
             const int32_t* tokens, int64_t rows, float* y) const override {
    Wait([=, this, &queue, &table] { inner_->Embed(queue, table, first_row, tokens, rows, y); });
  }
  void RmsNorm(kernels::Queue& queue, const float* x, const float* weight, double eps, int64_t rows,
               int64_t dim, float* y) const override {
    Wait([=, this, &queue] { inner_->RmsNorm(queue, x, weight, eps, rows, dim, y); });
  }
  void AddRmsNorm(kernels::Queue& queue, float* x, const float* delta, const float* weight,
                  double eps, int64_t rows, int64_t dim, float* y) const override {
    Wait([=, this, &queue] { inner_->AddRmsNorm(queue, x, delta, weight, eps, rows, dim, y); });
  }
  void PrepareAttention(kernels::Queue& queue, const kernels::AttentionArgs& args) const override {
    Wait([=, this, &queue] { inner_->PrepareAttention(queue, args); });
  }
  void Attention(kernels::Queue& queue, const kernels::AttentionArgs& args) const override {
    Wait([=, this, &queue] { inner_->Attention(queue, args); });
  }
  void PrepareLatentAttention(kernels::Queue& queue,
                              const kernels::LatentAttentionArgs& args) const override {
    Wait([=, this, &queue] { inner_->PrepareLatentAttention(queue, args); });
  }
  void LatentAttention(kernels::Queue& queue,
                       const kernels::LatentAttentionArgs& args) const override {
    Wait([=, this, &queue] { inner_->LatentAttention(queue, args); });
  }
  void JoinHeads(kernels::Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override {
    Wait([=, this, &queue] { inner_->JoinHeads(queue, x, heads, rows, dim, y); });
  }
  void SiluMul(kernels::Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override {
    Wait([=, this, &queue] { inner_->SiluMul(queue, gate_up, rows, columns, out); });
  }
  void Route(kernels::Queue& queue, const kernels::RouterArgs& args) const override {
    Wait([=, this, &queue] { inner_->Route(queue, args); });
  }
  void CombineExperts(kernels::Queue& queue, const kernels::RouterArgs& args,
                      const kernels::ExpertGroups& groups, const float* expert_out,
                      const float* shared, int64_t dim, float* y) const override {
    Wait([=, this, &queue] {
      inner_->CombineExperts(queue, args, groups, expert_out, shared, dim, y);
    });
  }

 private:
  template <typename Op>
  void Wait(Op op) const {
    if (waiting_.empty()) Open(false);
    waiting_.push_back(std::move(op));
  }
  void Open(bool open) const {
    if (!options_.guard) return;
    for (const auto& [memory, bytes] : memory_)
      LOCKSTEP_CHECK(mprotect(memory, bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE) == 0);
  }

  const DeferredOptions options_;
  mutable std::vector<std::function<void()>> waiting_;
  mutable std::vector<std::pair<void*, uint64_t>> memory_;  // of a model that outlives all steps
  mutable int finishes_ = 0;
  mutable uint64_t allocated_bytes_ = 0;
};

}  // namespace lockstep::testing
