// The SIMD backend: chooses an instruction set once, and splits every op over the rank's threads.
#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/attention_rows.h"
#include "runtime/kernels/cpu/cpu_matrix.h"
#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/quantized_product.h"

namespace lockstep::kernels {
namespace {

const CpuMatrix& Cpu(const PackedMatrix& matrix) { return static_cast<const CpuMatrix&>(matrix); }

// Outputs that one thread takes at least: whole tiles on every instruction set.
constexpr int64_t kOutputGrain = 8;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelTable* table, const AttentionKernels& attention,
             const QuantizedKernels* quantized, Precision precision)
      : table_(table), attention_(attention), precision_(precision), quantized_(quantized) {}

  std::string name() const override {
    return std::string("cpu/") + table_->name + (precision_ == Precision::kFast ? "+q8" : "");
  }

  ProductLoop product_loop() const override {
    return precision_ == Precision::kFast ? quantized_.kernels().product_loop
                                          : table_->product_loop;
  }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    if (!BecomesPanels(matrix)) return CpuMatrix::Portable(std::move(matrix));
    LOCKSTEP_RETURN_IF_ERROR(quantized_.Reserve(matrix.inputs));
    return CpuMatrix::Panels(std::move(matrix));
  }
  void PackNext(HostMatrix* matrix) const override {
    if (BecomesPanels(*matrix)) CpuMatrix::TurnNext(matrix);
  }
  StatusOr<std::unique_ptr<PackedMatrix>> Repack(
      std::unique_ptr<PackedMatrix> packed) const override {
    return Pack(static_cast<CpuMatrix&>(*packed).TakePortable());
  }
  uint64_t PackedBytes(const HostMatrix& shape) const override {
    const uint64_t bytes = HostMatrix::BytesOf(shape, "weights").value_or(0);
    return bytes + (BecomesPanels(shape) ? CpuMatrix::LastPanelBytes(shape) : 0);
  }
  uint64_t WorkBytes(const HostMatrix& shape) const override {
    return BecomesPanels(shape) ? QuantizedProduct::BytesFor(shape.inputs) : 0;
  }

  void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
              int64_t rows, float* y, int64_t y_stride) const override {
    if (Cpu(weights).in_panels()) {
      quantized_.MatMul(queue, Cpu(weights), bias, {x, nullptr, y, y_stride}, rows);
      return;
    }
    MatMulPart all = PartOf(Cpu(weights));
    all.weights = Cpu(weights).matrix(0);
    all.bias = bias;
    all.x = x;
    all.row_end = rows;
    all.y = y;
    all.y_stride = y_stride;
    queue.pool->ParallelFor(weights.outputs(), kOutputGrain, [&](int64_t begin, int64_t end, int) {
      MatMulPart part = all;
      part.output_begin = begin;
      part.output_end = end;
      table_->matmul(part);
    });
  }

  void GroupRows(Queue&, const RouterArgs& args, const ExpertGroups& groups) const override {
    GroupRowsOnHost(args, groups);
  }

  void GroupedMatMul(Queue& queue, const PackedMatrix& weights, const ExpertGroups& groups,
                     const float* x, bool by_row, float* y, int64_t y_stride) const override {
    const std::span used(groups.groups, static_cast<size_t>(*groups.group_count));
    if (Cpu(weights).in_panels()) {
      quantized_.Grouped(queue, Cpu(weights), used,
                         {x, by_row ? groups.row_of : nullptr, y, y_stride});
      return;
    }
    // Every thread takes the same columns of every expert: balanced however the rows fell.
    queue.pool->ParallelFor(weights.outputs(), kOutputGrain, [&](int64_t begin, int64_t end, int) {
      MatMulPart part = PartOf(Cpu(weights));
      part.output_begin = begin;
      part.output_end = end;
      part.x = x;
      part.row_of = by_row ? groups.row_of : nullptr;
      part.y = y;
      part.y_stride = y_stride;
      for (const RowGroup& group : used) {
        part.weights = Cpu(weights).matrix(group.matrix);
        part.row_begin = group.begin;
        part.row_end = group.end;
        table_->matmul(part);
      }
    });
  }

  void Embed(Queue& queue, const PackedMatrix& table, int64_t first_row, const int32_t* tokens,
             int64_t rows, float* y) const override {
    const int64_t dim = table.inputs();
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = tokens[row] - first_row;
        if (index < 0 || index >= table.outputs()) {
          std::fill_n(y + row * dim, dim, 0.0f);
        } else {
          Cpu(table).DecodeRowOf(0, index, y + row * dim);
        }
      }
    });
  }

  void RmsNorm(Queue& queue, const float* x, const float* weight, double eps, int64_t rows,
               int64_t dim, float* y) const override {
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        table_->rms_norm(x + row * dim, weight, static_cast<float>(eps), dim, y + row * dim);
      }
    });
  }

  void AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight, double eps,
                  int64_t rows, int64_t dim, float* y) const override {
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        table_->add(x + row * dim, delta + row * dim, dim);
        table_->rms_norm(x + row * dim, weight, static_cast<float>(eps), dim, y + row * dim);
      }
    });
  }

  void PrepareAttention(Queue& queue, const AttentionArgs& args) const override {
    PrepareRows(attention_, queue, args);
  }

  void Attention(Queue& queue, const AttentionArgs& args) const override {
    Attend(attention_, queue, args);
  }

  void PrepareLatentAttention(Queue& queue, const LatentAttentionArgs& args) const override {
    PrepareRows(attention_, queue, args);
  }

  void LatentAttention(Queue& queue, const LatentAttentionArgs& args) const override {
    Attend(attention_, queue, args);
  }

  void JoinHeads(Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override {
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t head = 0; head < heads; ++head) {
          std::copy_n(x + (head * rows + row) * dim, dim, y + (row * heads + head) * dim);
        }
      }
    });
  }

  void SiluMul(Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override {
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const float* gate = gate_up + row * 2 * columns;
        table_->silu_mul(gate, gate + columns, columns, out + row * columns);
      }
    });
  }

  void Route(Queue& queue, const RouterArgs& args) const override {
    queue.pool->ParallelFor(args.rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) table_->route_row(args, row);
    });
  }

  void CombineExperts(Queue& queue, const RouterArgs& args, const ExpertGroups& groups,
                      const float* expert_out, const float* shared, int64_t dim,
                      float* y) const override {
    queue.pool->ParallelFor(args.rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        table_->combine_row(
            expert_out, groups.assignment_of + row * args.top_k, args.weights + row * args.top_k,
            shared != nullptr ? shared + row * dim : nullptr, args.top_k, dim, y + row * dim);
      }
    });
  }

 private:
  // Rows of NVFP4 may end with half a block, which no panel has: they keep float32 activations.
  bool BecomesPanels(const HostMatrix& matrix) const {
    return precision_ == Precision::kFast && HasPanels(matrix.format) &&
           matrix.inputs % kBlockWeights == 0;
  }
  static MatMulPart PartOf(const CpuMatrix& matrix) {
    MatMulPart part;
    part.format = matrix.format();
    part.phase = matrix.phase();
    part.row_bytes = matrix.row_bytes();
    part.codes_at = LayoutOf(part.format, matrix.inputs(), part.phase).codes_at;
    part.inputs = matrix.inputs();
    return part;
  }

  const KernelTable* table_;
  const AttentionKernels& attention_;
  Precision precision_;
  mutable QuantizedProduct quantized_;
};

// An instruction set as --kernels names it. Sets with fused multiply-add give the same bits.
struct InstructionSet {
  std::string_view name;
  const KernelTable* table;
  const AttentionKernels& (*attention)();
  const QuantizedKernels* quantized;
};

std::vector<InstructionSet> InstructionSets() {
  std::vector<InstructionSet> sets;
  const auto add = [&](const KernelTable* table, const AttentionKernels& (*attention)(),
                       const QuantizedKernels* quantized) {
    if (table != nullptr && quantized != nullptr)
      sets.push_back({quantized->name, table, attention, quantized});
  };
  add(Avx512Kernels(), Avx512Attention, Avx512VnniQuantized());
  add(Avx512Kernels(), Avx512Attention, Avx512Quantized());
  add(Avx2Kernels(), Avx2Attention, Avx2Quantized());
#if defined(__aarch64__)
  add(BaselineKernels(), BaselineAttention, NeonI8mmQuantized());
  add(BaselineKernels(), BaselineAttention, NeonDotQuantized());
#endif
  add(BaselineKernels(), BaselineAttention, BaselineQuantized());
  return sets;
}

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(std::string_view instruction_set,
                                                  Precision precision) {
  std::string known;
  for (const InstructionSet& set : InstructionSets()) {
    if (instruction_set.empty() || instruction_set == set.name)
      return std::make_unique<CpuBackend>(set.table, set.attention(), set.quantized, precision);
    known += (known.empty() ? "" : ", ") + std::string(set.name);
  }
  return UsageError("--kernels: this processor has no 'cpu/%s'; it has %s",
                    std::string(instruction_set), known);
}

}  // namespace lockstep::kernels
