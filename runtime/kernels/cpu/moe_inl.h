// Router, expert activation and the weighted sum of experts.
#pragma once

#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

void AddImpl(float* x, const float* delta, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(Load(x + i) + Load(delta + i), x + i);
  for (; i < count; ++i) x[i] += delta[i];
}

void SiluMulImpl(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t width = count - i < kLanes ? count - i : kLanes;
    const F32x16 g = LoadPart(gate + i, width);
    StorePart(g * Sigmoid(g) * LoadPart(up + i, width), out + i, width);
  }
}

// Index of the highest value, the first of equals; -1 if all are taken (-infinity).
inline int64_t Highest(const float* values, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] > -__builtin_inff() && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

// Only experts of the topk_group best groups stay eligible; a group's score is the sum of its two
// best choices.
inline void KeepBestGroups(const RouterArgs& args, float* choice) {
  const int64_t per_group = args.experts / args.n_group;
  float group_scores[kMaxExperts];
  for (int64_t group = 0; group < args.n_group; ++group) {
    float best = -__builtin_inff(), second = -__builtin_inff();
    for (int64_t e = group * per_group; e < (group + 1) * per_group; ++e) {
      if (choice[e] > best) {
        second = best;
        best = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    group_scores[group] = per_group > 1 ? best + second : best;
  }
  bool keep[kMaxExperts] = {};
  for (int64_t place = 0; place < args.topk_group; ++place) {
    const int64_t group = Highest(group_scores, args.n_group);
    if (group < 0) break;
    keep[group] = true;
    group_scores[group] = -__builtin_inff();
  }
  for (int64_t e = 0; e < args.experts; ++e) {
    if (!keep[e / per_group]) choice[e] = -__builtin_inff();
  }
}

void RouteRowImpl(const RouterArgs& args, int64_t row) {
  float score[kMaxExperts];
  float choice[kMaxExperts];
  for (int64_t e = 0; e < args.experts; e += kLanes) {
    const int64_t width = args.experts - e < kLanes ? args.experts - e : kLanes;
    const F32x16 s = Sigmoid(LoadPart(args.logits + row * args.experts + e, width));
    StorePart(s, score + e, width);
    StorePart(s + LoadPart(args.correction + e, width), choice + e, width);
  }
  if (args.n_group > 1) KeepBestGroups(args, choice);
  int32_t* chosen = args.chosen + row * args.top_k;
  for (int64_t slot = 0; slot < args.top_k; ++slot) {
    const int64_t best = Highest(choice, args.experts);
    chosen[slot] = static_cast<int32_t>(best < 0 ? slot : best);
    if (best >= 0) choice[best] = -__builtin_inff();
  }
  // Largest weight first (the correction may have chosen in another order), ties by lower index.
  for (int64_t i = 1; i < args.top_k; ++i) {
    const int32_t moving = chosen[i];
    int64_t place = i;
    for (; place > 0; --place) {
      const int32_t before = chosen[place - 1];
      const bool in_order =
          score[before] > score[moving] || (score[before] == score[moving] && before < moving);
      if (in_order) break;
      chosen[place] = before;
    }
    chosen[place] = moving;
  }
  float sum = 0;
  for (int64_t slot = 0; slot < args.top_k; ++slot) sum += score[chosen[slot]];
  sum += 1e-20f;
  for (int64_t slot = 0; slot < args.top_k; ++slot) {
    const float weight = args.normalize ? score[chosen[slot]] / sum : score[chosen[slot]];
    args.weights[row * args.top_k + slot] = weight * args.scale;
  }
}

void CombineRowImpl(const float* expert_out, const int32_t* slot_of, const float* weights,
                    const float* shared, int64_t top_k, int64_t dim, float* y) {
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t width = dim - i < kLanes ? dim - i : kLanes;
    F32x16 sum = Splat(0);
    for (int64_t slot = 0; slot < top_k; ++slot) {
      sum = Fused(LoadPart(expert_out + slot_of[slot] * dim + i, width), Splat(weights[slot]), sum);
    }
    if (shared != nullptr) sum = sum + LoadPart(shared + i, width);
    StorePart(sum, y + i, width);
  }
}

}  // namespace
}  // namespace lockstep::kernels
