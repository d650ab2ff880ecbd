// The plain definition of every op: sequential sums in double precision, one loop per idea. Slow,
// and right.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/ref/ref_attention.h"

namespace lockstep::kernels {
namespace {

class RefMatrix final : public PackedMatrix {
 public:
  explicit RefMatrix(HostMatrix matrix)
      : PackedMatrix(matrix.count, matrix.outputs, matrix.inputs, matrix.data.bytes()),
        matrix_(std::move(matrix)) {}

  // Weights [begin, begin + count) of an output, exactly.
  void Decode(int64_t index, int64_t output, int64_t begin, int64_t count, float* to) const {
    const auto row = static_cast<uint64_t>(index * outputs() + output) * matrix_.row_bytes();
    DecodeRow(matrix_.format, matrix_.data.data() + row, inputs(), matrix_.phase, begin, count, to);
  }

 private:
  HostMatrix matrix_;
};

const RefMatrix& Ref(const PackedMatrix& matrix) { return static_cast<const RefMatrix&>(matrix); }

void RepeatDoubles(int64_t rounds) {
  RepeatProduct<double, double, double>(rounds,
                                        [](double sum, double w, double x) { return sum + w * x; });
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class RefBackend final : public Backend {
 public:
  std::string name() const override { return "ref"; }
  ProductLoop product_loop() const override {
    return {"mul and add, float64", RepeatDoubles, kLoopSums * 2};
  }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    return std::make_unique<RefMatrix>(std::move(matrix));
  }
  void PackNext(HostMatrix*, ThreadPool&) const override {}
  StatusOr<std::unique_ptr<PackedMatrix>> Repack(
      std::unique_ptr<PackedMatrix> packed) const override {
    return packed;
  }
  uint64_t PackedBytes(const HostMatrix& shape) const override {
    return HostMatrix::BytesOf(shape, "weights").value_or(0);
  }
  uint64_t WorkBytes(const HostMatrix&) const override { return 0; }

  void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
              int64_t rows, float* y, int64_t y_stride) const override {
    const int64_t n = weights.outputs();
    queue.pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t output = begin; output < end; ++output) {
        const double start = bias != nullptr ? bias[output] : 0;
        ForProducts(
            Ref(weights), 0, output, 0, rows,
            [&](int64_t row) { return x + row * weights.inputs(); },
            [&](int64_t row, double sum) {
              y[row * y_stride + output] = static_cast<float>(sum + start);
            });
      }
    });
  }

  void GroupRows(Queue&, const RouterArgs& args, const ExpertGroups& groups) const override {
    GroupRowsOnHost(args, groups);
  }

  void GroupedMatMul(Queue& queue, const PackedMatrix& weights, const ExpertGroups& groups,
                     const float* x, bool by_row, float* y, int64_t y_stride) const override {
    const int64_t n = weights.outputs();
    for (const RowGroup& group :
         std::span(groups.groups, static_cast<size_t>(*groups.group_count))) {
      queue.pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t output = begin; output < end; ++output) {
          ForProducts(
              Ref(weights), group.matrix, output, group.begin, group.end,
              [&](int64_t a) { return x + (by_row ? groups.row_of[a] : a) * weights.inputs(); },
              [&](int64_t a, double sum) { y[a * y_stride + output] = static_cast<float>(sum); });
        }
      });
    }
  }

  void Embed(Queue&, const PackedMatrix& table, int64_t first_row, const int32_t* tokens,
             int64_t rows, float* y) const override {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t index = tokens[row] - first_row;
      float* to = y + row * table.inputs();
      if (index >= 0 && index < table.outputs()) {
        Ref(table).Decode(0, index, 0, table.inputs(), to);
      } else {
        std::fill_n(to, table.inputs(), 0.0f);
      }
    }
  }

  void RmsNorm(Queue&, const float* x, const float* weight, double eps, int64_t rows, int64_t dim,
               float* y) const override {
    for (int64_t row = 0; row < rows; ++row)
      RefNormRow(x + row * dim, weight, eps, dim, y + row * dim);
  }

  void AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight, double eps,
                  int64_t rows, int64_t dim, float* y) const override {
    for (int64_t i = 0; i < rows * dim; ++i) x[i] += delta[i];
    RmsNorm(queue, x, weight, eps, rows, dim, y);
  }

  void PrepareAttention(Queue&, const AttentionArgs& args) const override {
    RefPrepareAttention(args);
  }

  void Attention(Queue& queue, const AttentionArgs& args) const override {
    RefAttention(queue, args);
  }

  void PrepareLatentAttention(Queue&, const LatentAttentionArgs& args) const override {
    RefPrepareLatentAttention(args);
  }

  void LatentAttention(Queue& queue, const LatentAttentionArgs& args) const override {
    RefLatentAttention(queue, args);
  }

  void JoinHeads(Queue&, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override {
    for (int64_t i = 0; i < heads * rows; ++i) {
      std::copy_n(x + i * dim, dim, y + (i % rows * heads + i / rows) * dim);
    }
  }

  void SiluMul(Queue&, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override {
    for (int64_t row = 0; row < rows; ++row) {
      const float* gate = gate_up + row * 2 * columns;
      for (int64_t i = 0; i < columns; ++i) {
        out[row * columns + i] = static_cast<float>(gate[i] * Sigmoid(gate[i]) * gate[columns + i]);
      }
    }
  }

  void Route(Queue&, const RouterArgs& args) const override {
    for (int64_t row = 0; row < args.rows; ++row) RouteRow(args, row);
  }

  void CombineExperts(Queue&, const RouterArgs& args, const ExpertGroups& groups,
                      const float* expert_out, const float* shared, int64_t dim,
                      float* y) const override {
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t i = 0; i < dim; ++i) {
        double sum = 0;
        for (int64_t slot = row * args.top_k; slot < (row + 1) * args.top_k; ++slot) {
          sum += double{args.weights[slot]} * expert_out[groups.assignment_of[slot] * dim + i];
        }
        y[row * dim + i] =
            static_cast<float>(sum + (shared != nullptr ? shared[row * dim + i] : 0));
      }
    }
  }

 private:
  // store(item, product of row(item) and one output's weights) for items [begin, end), each sum
  // from the first input to the last. The weights are decoded in pieces: nothing is allocated in a
  // step.
  template <typename Row, typename Store>
  static void ForProducts(const RefMatrix& weights, int64_t index, int64_t output, int64_t begin,
                          int64_t end, const Row& row, const Store& store) {
    constexpr int64_t kPiece = 2048, kItems = 64;
    float decoded[kPiece];
    for (int64_t first = begin; first < end; first += kItems) {
      const int64_t items = std::min(kItems, end - first);
      double sums[kItems] = {};
      for (int64_t k = 0; k < weights.inputs(); k += kPiece) {
        const int64_t count = std::min(kPiece, weights.inputs() - k);
        weights.Decode(index, output, k, count, decoded);
        for (int64_t item = 0; item < items; ++item) {
          const float* x = row(first + item) + k;
          for (int64_t i = 0; i < count; ++i) sums[item] += x[i] * double{decoded[i]};
        }
      }
      for (int64_t item = 0; item < items; ++item) store(first + item, sums[item]);
    }
  }

  // The first of the largest values among [0, count) that may be taken; some may.
  template <typename MayTake>
  static int64_t Largest(const float* values, int64_t count, const MayTake& may_take) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i) {
      if (may_take(i) && (best < 0 || values[i] > values[best])) best = i;
    }
    return best;
  }

  static void RouteRow(const RouterArgs& args, int64_t row) {
    float score[kMaxExperts], choice[kMaxExperts];
    for (int64_t e = 0; e < args.experts; ++e) {
      score[e] = static_cast<float>(Sigmoid(args.logits[row * args.experts + e]));
      choice[e] = score[e] + args.correction[e];
    }
    if (args.n_group > 1) KeepBestGroups(args, choice);
    // Largest choices first, then those in the order of their scores; ties by lower index.
    bool chosen[kMaxExperts] = {};
    for (int64_t slot = 0; slot < args.top_k; ++slot)
      chosen[Largest(choice, args.experts, [&](int64_t e) { return !chosen[e]; })] = true;
    int64_t order[kMaxExperts];
    for (int64_t slot = 0; slot < args.top_k; ++slot) {
      order[slot] = Largest(score, args.experts, [&](int64_t e) { return chosen[e]; });
      chosen[order[slot]] = false;
    }
    double sum = 1e-20;
    for (int64_t slot = 0; slot < args.top_k; ++slot) sum += score[order[slot]];
    for (int64_t slot = 0; slot < args.top_k; ++slot) {
      args.chosen[row * args.top_k + slot] = static_cast<int32_t>(order[slot]);
      const double weight = args.normalize ? score[order[slot]] / sum : score[order[slot]];
      args.weights[row * args.top_k + slot] = static_cast<float>(weight * args.scale);
    }
  }

  // A group's score is the sum of its two best choices; experts outside the best groups cannot be
  // chosen.
  static void KeepBestGroups(const RouterArgs& args, float* choice) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const int64_t per_group = args.experts / args.n_group;
    float best[kMaxExperts];
    for (int64_t group = 0; group < args.n_group; ++group) {
      float first = kNone, second = kNone;
      for (int64_t e = group * per_group; e < (group + 1) * per_group; ++e) {
        second = std::max(second, std::min(first, choice[e]));
        first = std::max(first, choice[e]);
      }
      best[group] = first + (per_group > 1 ? second : 0.0f);
    }
    bool kept[kMaxExperts] = {};
    for (int64_t place = 0; place < args.topk_group; ++place)
      kept[Largest(best, args.n_group, [&](int64_t group) { return !kept[group]; })] = true;
    for (int64_t group = 0; group < args.n_group; ++group) {
      if (!kept[group]) std::fill_n(choice + group * per_group, per_group, kNone);
    }
  }
};

}  // namespace

std::unique_ptr<Backend> MakeRefBackend() { return std::make_unique<RefBackend>(); }

}  // namespace lockstep::kernels
