// The SIMD backend: chooses an instruction set once, and splits every op over the rank's threads.
#include <algorithm>
#include <memory>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/kernel_table.h"

namespace lockstep::kernels {
namespace {

class CpuMatrix final : public PackedMatrix {
 public:
  explicit CpuMatrix(HostMatrix matrix)
      : PackedMatrix(matrix.count, matrix.outputs, matrix.inputs, matrix.data.bytes()),
        matrix_(std::move(matrix)) {}
  DType type() const { return matrix_.type; }
  const std::byte* matrix(int64_t index) const {
    return matrix_.data.data() + static_cast<uint64_t>(index * outputs()) * matrix_.row_bytes();
  }

 private:
  HostMatrix matrix_;
};

const CpuMatrix& Cpu(const PackedMatrix& matrix) { return static_cast<const CpuMatrix&>(matrix); }

// Outputs that one thread takes at least: whole tiles on every instruction set.
constexpr int64_t kOutputGrain = 8;

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const KernelTable* table) : table_(table) {}

  std::string name() const override { return std::string("cpu/") + table_->name; }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    return std::make_unique<CpuMatrix>(std::move(matrix));
  }

  void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
              int64_t rows, float* y) const override {
    MatMulPart all;
    all.type = Cpu(weights).type();
    all.weights = Cpu(weights).matrix(0);
    all.bias = bias;
    all.inputs = weights.inputs();
    all.x = x;
    all.row_end = rows;
    all.y = y;
    all.y_stride = weights.outputs();
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
                     const float* x, bool by_row, float* y) const override {
    // Every thread takes the same columns of every expert: balanced however the rows fell.
    queue.pool->ParallelFor(weights.outputs(), kOutputGrain, [&](int64_t begin, int64_t end, int) {
      MatMulPart part;
      part.type = Cpu(weights).type();
      part.inputs = weights.inputs();
      part.output_begin = begin;
      part.output_end = end;
      part.x = x;
      part.row_of = by_row ? groups.row_of : nullptr;
      part.y = y;
      part.y_stride = weights.outputs();
      for (const RowGroup& group :
           std::span(groups.groups, static_cast<size_t>(*groups.group_count))) {
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
    const auto row_bytes = static_cast<int64_t>(SizeOf(Cpu(table).type())) * dim;
    queue.pool->ParallelFor(rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = tokens[row] - first_row;
        if (index < 0 || index >= table.outputs()) {
          std::fill_n(y + row * dim, dim, 0.0f);
        } else {
          table_->widen(Cpu(table).type(), Cpu(table).matrix(0) + index * row_bytes, dim,
                        y + row * dim);
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
    queue.pool->ParallelFor(args.rows, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) table_->prepare_row(args, row);
    });
  }

  void Attention(Queue& queue, const AttentionArgs& args) const override {
    queue.pool->ParallelFor(
        args.rows * args.kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
          float* scores = args.scores + thread * args.group * args.score_stride;
          for (int64_t task = begin; task < end; ++task) {
            table_->attend(args, task / args.kv_heads, task % args.kv_heads, scores);
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
  const KernelTable* table_;
};

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(std::string_view instruction_set) {
  std::string known;
  for (const KernelTable* table : {Avx512Kernels(), Avx2Kernels(), BaselineKernels()}) {
    if (table == nullptr) continue;
    if (instruction_set.empty() || instruction_set == table->name)
      return std::make_unique<CpuBackend>(table);
    known += known.empty() ? table->name : std::string(", ") + table->name;
  }
  return UsageError("--kernels: this processor has no 'cpu/%s'; it has %s",
                    std::string(instruction_set), known);
}

}  // namespace lockstep::kernels
