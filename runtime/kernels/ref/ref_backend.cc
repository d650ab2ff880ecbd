// The plain definition of every op: sequential sums in double precision, one loop per idea. Slow,
// and right.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/ref/ref_mla.h"

namespace lockstep::kernels {
namespace {

class RefMatrix final : public PackedMatrix {
 public:
  explicit RefMatrix(HostMatrix matrix)
      : PackedMatrix(matrix.count, matrix.outputs, matrix.inputs, matrix.data.bytes()),
        matrix_(std::move(matrix)) {}

  // Weights [0, inputs) of an output, exactly.
  void Decode(int64_t index, int64_t output, float* to) const {
    const auto row = static_cast<uint64_t>(index * outputs() + output) * matrix_.row_bytes();
    DecodeRow(matrix_.format, matrix_.data.data() + row, inputs(), matrix_.phase, 0, inputs(), to);
  }

 private:
  HostMatrix matrix_;
};

const RefMatrix& Ref(const PackedMatrix& matrix) { return static_cast<const RefMatrix&>(matrix); }

void NormRow(const float* x, const float* weight, double eps, int64_t dim, float* y) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += double{x[i]} * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) y[i] = static_cast<float>(x[i] * scale * weight[i]);
}

void RotateHead(const AttentionArgs& args, int64_t row, float* head) {
  const int64_t half = args.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double c = args.cosines[row * half + i];
    const double s = args.sines[row * half + i];
    const double a = head[i];
    const double b = head[i + half];
    head[i] = static_cast<float>(a * c - b * s);
    head[i + half] = static_cast<float>(b * c + a * s);
  }
}

// Where position `position` of a sequence lies in a layer's pages, for local KV head `head`.
int64_t PageOffset(const AttentionArgs& args, int64_t row, int64_t head, int64_t position) {
  const int64_t block = args.block_tables[args.sequences[row]][position / args.block_tokens];
  return ((block * args.kv_heads + head) * args.block_tokens + position % args.block_tokens) *
         args.head_dim;
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class RefBackend final : public Backend {
 public:
  std::string name() const override { return "ref"; }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    return std::make_unique<RefMatrix>(std::move(matrix));
  }

  void MatMul(Queue& queue, const PackedMatrix& weights, const float* bias, const float* x,
              int64_t rows, float* y, int64_t y_stride) const override {
    const int64_t n = weights.outputs();
    queue.pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> decoded(static_cast<size_t>(weights.inputs()));
      for (int64_t output = begin; output < end; ++output) {
        Ref(weights).Decode(0, output, decoded.data());
        for (int64_t row = 0; row < rows; ++row) {
          y[row * y_stride + output] = static_cast<float>(Dot(decoded, x + row * weights.inputs()) +
                                                          (bias != nullptr ? bias[output] : 0));
        }
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
        std::vector<float> decoded(static_cast<size_t>(weights.inputs()));
        for (int64_t output = begin; output < end; ++output) {
          Ref(weights).Decode(group.matrix, output, decoded.data());
          for (int64_t assignment = group.begin; assignment < group.end; ++assignment) {
            const int64_t row = by_row ? groups.row_of[assignment] : assignment;
            y[assignment * y_stride + output] =
                static_cast<float>(Dot(decoded, x + row * weights.inputs()));
          }
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
        Ref(table).Decode(0, index, to);
      } else {
        std::fill_n(to, table.inputs(), 0.0f);
      }
    }
  }

  void RmsNorm(Queue&, const float* x, const float* weight, double eps, int64_t rows, int64_t dim,
               float* y) const override {
    for (int64_t row = 0; row < rows; ++row)
      NormRow(x + row * dim, weight, eps, dim, y + row * dim);
  }

  void AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight, double eps,
                  int64_t rows, int64_t dim, float* y) const override {
    for (int64_t i = 0; i < rows * dim; ++i) x[i] += delta[i];
    RmsNorm(queue, x, weight, eps, rows, dim, y);
  }

  void PrepareAttention(Queue&, const AttentionArgs& args) const override {
    const int64_t width = (args.query_heads + 2 * args.kv_heads) * args.head_dim;
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t head = 0; head < args.query_heads + args.kv_heads; ++head) {
        float* values = args.qkv + row * width + head * args.head_dim;
        const float* norm = head < args.query_heads ? args.query_norm : args.key_norm;
        if (norm != nullptr) NormRow(values, norm, args.eps, args.head_dim, values);
        RotateHead(args, row, values);
      }
      const float* keys = args.qkv + row * width + args.query_heads * args.head_dim;
      for (int64_t head = 0; head < args.kv_heads; ++head) {
        const int64_t at = PageOffset(args, row, head, args.positions[row]);
        const auto bytes = static_cast<size_t>(args.head_dim) * sizeof(float);
        std::memcpy(args.key_pages + at, keys + head * args.head_dim, bytes);
        std::memcpy(args.value_pages + at, keys + (args.kv_heads + head) * args.head_dim, bytes);
      }
    }
  }

  void Attention(Queue& queue, const AttentionArgs& args) const override {
    queue.pool->ParallelFor(args.rows * args.query_heads, 1,
                            [&](int64_t begin, int64_t end, int thread) {
                              for (int64_t i = begin; i < end; ++i) {
                                AttendHead(args, i / args.query_heads, i % args.query_heads,
                                           args.scores + thread * args.group * args.score_stride);
                              }
                            });
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
  static double Dot(const std::vector<float>& weights, const float* x) {
    double sum = 0;
    for (size_t k = 0; k < weights.size(); ++k) sum += x[k] * double{weights[k]};
    return sum;
  }

  static void AttendHead(const AttentionArgs& args, int64_t row, int64_t head, float* scores) {
    const int64_t width = (args.query_heads + 2 * args.kv_heads) * args.head_dim;
    const float* query = args.qkv + row * width + head * args.head_dim;
    const int64_t kv_head = (args.first_query_head + head) / args.group - args.first_kv_head;
    const int64_t last = args.positions[row];
    double highest = -std::numeric_limits<double>::infinity();
    for (int64_t position = 0; position <= last; ++position) {
      const float* key = args.key_pages + PageOffset(args, row, kv_head, position);
      double dot = 0;
      for (int64_t i = 0; i < args.head_dim; ++i) dot += double{query[i]} * key[i];
      scores[position] = static_cast<float>(dot / std::sqrt(static_cast<double>(args.head_dim)));
      highest = std::max(highest, double{scores[position]});
    }
    double sum = 0;
    for (int64_t position = 0; position <= last; ++position)
      sum += std::exp(scores[position] - highest);
    float* out = args.out + (row * args.query_heads + head) * args.head_dim;
    for (int64_t i = 0; i < args.head_dim; ++i) {
      double value = 0;
      for (int64_t position = 0; position <= last; ++position) {
        value += std::exp(scores[position] - highest) *
                 args.value_pages[PageOffset(args, row, kv_head, position) + i];
      }
      out[i] = static_cast<float>(value / sum);
    }
  }

  static void RouteRow(const RouterArgs& args, int64_t row) {
    std::vector<float> score(static_cast<size_t>(args.experts));
    std::vector<float> choice(static_cast<size_t>(args.experts));
    for (int64_t e = 0; e < args.experts; ++e) {
      score[e] = static_cast<float>(Sigmoid(args.logits[row * args.experts + e]));
      choice[e] = score[e] + args.correction[e];
    }
    if (args.n_group > 1) KeepBestGroups(args, &choice);
    std::vector<int32_t> order(choice.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return choice[a] > choice[b]; });
    order.resize(static_cast<size_t>(args.top_k));
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return score[a] != score[b] ? score[a] > score[b] : a < b;
    });
    double sum = 1e-20;
    for (const int32_t e : order) sum += score[e];
    for (int64_t slot = 0; slot < args.top_k; ++slot) {
      args.chosen[row * args.top_k + slot] = order[slot];
      const double weight = args.normalize ? score[order[slot]] / sum : score[order[slot]];
      args.weights[row * args.top_k + slot] = static_cast<float>(weight * args.scale);
    }
  }

  // A group's score is the sum of its two best choices; experts outside the best groups cannot be
  // chosen.
  static void KeepBestGroups(const RouterArgs& args, std::vector<float>* choice) {
    const int64_t per_group = args.experts / args.n_group;
    std::vector<std::pair<float, int64_t>> groups;
    for (int64_t group = 0; group < args.n_group; ++group) {
      std::vector<float> members(choice->begin() + group * per_group,
                                 choice->begin() + (group + 1) * per_group);
      std::sort(members.begin(), members.end(), std::greater<>());
      groups.emplace_back(-(members[0] + (per_group > 1 ? members[1] : 0.0f)), group);
    }
    std::stable_sort(groups.begin(), groups.end());
    for (int64_t place = args.topk_group; place < args.n_group; ++place) {
      const int64_t group = groups[place].second;
      std::fill_n(choice->begin() + group * per_group, per_group,
                  -std::numeric_limits<float>::infinity());
    }
  }
};

}  // namespace

std::unique_ptr<Backend> MakeRefBackend() { return std::make_unique<RefBackend>(); }

}  // namespace lockstep::kernels
