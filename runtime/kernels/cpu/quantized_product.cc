#include "runtime/kernels/cpu/quantized_product.h"

#include <algorithm>

namespace lockstep::kernels {
namespace {

// Room for the rows of a usual step; the pages that no step touches cost nothing.
constexpr uint64_t kUsualBytes = uint64_t{16} << 20;
constexpr uint64_t kFewestRows = 64;

}  // namespace

uint64_t QuantizedProduct::BytesFor(int64_t inputs) {
  const uint64_t row_bytes =
      static_cast<uint64_t>(inputs / kBlockWeights) * sizeof(ActivationBlock);
  return std::max(kUsualBytes, kFewestRows * row_bytes);
}

Status QuantizedProduct::Reserve(int64_t inputs) {
  const uint64_t bytes = BytesFor(inputs);
  if (bytes <= blocks_.bytes()) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(blocks_, Buffer::Allocate(bytes, "8-bit activations"));
  return OkStatus();
}

QuantizedPart QuantizedProduct::PartOf(const CpuMatrix& weights, const Rows& rows) const {
  QuantizedPart part;
  part.format = weights.format();
  part.phase = weights.phase();
  part.blocks = weights.inputs() / kBlockWeights;
  part.panel_bytes = weights.panel_bytes();
  part.outputs = weights.outputs();
  part.x = blocks_.as<ActivationBlock>();
  part.y = rows.y;
  part.y_stride = rows.y_stride;
  return part;
}

void QuantizedProduct::Quantize(Queue& queue, const Rows& rows, int64_t begin, int64_t end,
                                QuantizedPart* part) {
  const int64_t blocks = part->blocks;
  const auto room = static_cast<int64_t>(blocks_.bytes() / sizeof(ActivationBlock));
  int64_t x_rows = end - begin;
  const int32_t* row_of = rows.row_of;
  if (row_of != nullptr) {
    const int64_t distinct = *std::max_element(row_of + begin, row_of + end) + int64_t{1};
    if (distinct * blocks <= room && distinct <= x_rows) {
      x_rows = distinct;
      part->row_of = row_of;
      row_of = nullptr;
      begin = 0;
    }
  }
  part->x_first = begin;
  auto* to = blocks_.as<ActivationBlock>();
  const WeightFormat& format = part->format;
  queue.pool->ParallelFor(x_rows, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t from = row_of != nullptr ? row_of[begin + row] : begin + row;
      kernels_->quantize(format, rows.x + from * blocks * kBlockWeights, blocks, to + row * blocks);
    }
  });
}

void QuantizedProduct::MatMul(Queue& queue, const CpuMatrix& weights, const float* bias,
                              const Rows& rows, int64_t count) {
  QuantizedPart all = PartOf(weights, rows);
  all.panels = weights.matrix(0);
  all.last_panel = weights.last_panel(0);
  all.bias = bias;
  const auto room = static_cast<int64_t>(blocks_.bytes() / sizeof(ActivationBlock));
  const int64_t step = room / std::max(all.blocks, int64_t{1});
  const int64_t panels = (all.outputs + kPanelOutputs - 1) / kPanelOutputs;
  for (int64_t begin = 0; begin < count; begin += step) {
    all.row_begin = begin;
    all.row_end = std::min(begin + step, count);
    Quantize(queue, rows, all.row_begin, all.row_end, &all);
    queue.pool->ParallelFor(panels, 1, [&](int64_t first, int64_t last, int) {
      QuantizedPart part = all;
      part.panel_begin = first;
      part.panel_end = last;
      kernels_->matmul(part);
    });
  }
}

void QuantizedProduct::Grouped(Queue& queue, const CpuMatrix& weights,
                               std::span<const RowGroup> groups, const Rows& rows) {
  QuantizedPart all = PartOf(weights, rows);
  const auto room = static_cast<int64_t>(blocks_.bytes() / sizeof(ActivationBlock));
  const int64_t step = room / std::max(all.blocks, int64_t{1});
  const int64_t panels = (all.outputs + kPanelOutputs - 1) / kPanelOutputs;
  const int64_t count = groups.empty() ? 0 : groups.back().end;
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t end = std::min(begin + step, count);
    all.row_of = nullptr;
    Quantize(queue, rows, begin, end, &all);
    // Every thread takes the same columns of every expert: balanced however the rows fell.
    queue.pool->ParallelFor(panels, 1, [&](int64_t first, int64_t last, int) {
      QuantizedPart part = all;
      part.panel_begin = first;
      part.panel_end = last;
      for (const RowGroup& group : groups) {
        part.row_begin = std::max<int64_t>(group.begin, begin);
        part.row_end = std::min<int64_t>(group.end, end);
        if (part.row_begin >= part.row_end) continue;
        part.panels = weights.matrix(group.matrix);
        part.last_panel = weights.last_panel(group.matrix);
        kernels_->matmul(part);
      }
    });
  }
}

}  // namespace lockstep::kernels
