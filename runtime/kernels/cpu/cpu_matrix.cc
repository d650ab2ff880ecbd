#include "runtime/kernels/cpu/cpu_matrix.h"

#include <cstring>
#include <vector>

#include "runtime/base/check.h"

namespace lockstep::kernels {

CpuMatrix::CpuMatrix(HostMatrix matrix, Buffer last_panels, bool in_panels)
    : PackedMatrix(matrix.count, matrix.outputs, matrix.inputs,
                   matrix.data.bytes() + last_panels.bytes()),
      matrix_(std::move(matrix)),
      last_panels_(std::move(last_panels)),
      in_panels_(in_panels),
      row_bytes_(matrix_.row_bytes()) {}

std::unique_ptr<CpuMatrix> CpuMatrix::Portable(HostMatrix matrix) {
  return std::unique_ptr<CpuMatrix>(new CpuMatrix(std::move(matrix), Buffer(), false));
}

HostMatrix CpuMatrix::TakePortable() {
  LOCKSTEP_CHECK(!in_panels_);
  return std::move(matrix_);
}

uint64_t CpuMatrix::LastPanelBytes(const HostMatrix& shape) {
  if (shape.outputs % kPanelOutputs == 0 || shape.count == 0) return 0;
  return static_cast<uint64_t>(shape.count) * shape.row_bytes() * kPanelOutputs + 64;
}

void CpuMatrix::TurnNext(HostMatrix* matrix, ThreadPool* pool) {
  const uint64_t panel_bytes = matrix->row_bytes() * kPanelOutputs;
  std::byte* const first = matrix->row(matrix->packed++, 0);
  const auto turn = [&](int64_t begin, int64_t end, int) {
    std::vector<std::byte> rows(panel_bytes);
    for (int64_t index = begin; index < end && panel_bytes > 0; ++index) {
      std::byte* const panel = first + static_cast<uint64_t>(index) * panel_bytes;
      std::memcpy(rows.data(), panel, panel_bytes);
      Interleave(matrix->format, matrix->inputs, matrix->phase, rows.data(), panel);
    }
  };
  const int64_t panels = matrix->outputs / kPanelOutputs;
  if (pool == nullptr) return turn(0, panels, 0);
  pool->ParallelFor(panels, 1, turn);
}

StatusOr<std::unique_ptr<CpuMatrix>> CpuMatrix::Panels(HostMatrix matrix) {
  const uint64_t row_bytes = matrix.row_bytes();
  const uint64_t panel_bytes = row_bytes * kPanelOutputs;
  const int64_t rest = matrix.outputs % kPanelOutputs;
  Buffer last_panels;
  if (const uint64_t bytes = LastPanelBytes(matrix); bytes > 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(last_panels,
                              Buffer::Allocate(bytes, "the last rows of packed weights"));
  }
  while (matrix.packed < matrix.count) TurnNext(&matrix, nullptr);
  std::vector<std::byte> rows(panel_bytes);
  for (int64_t index = 0; index < matrix.count && rest > 0 && panel_bytes > 0; ++index) {
    // Those of nothing stay zero.
    std::memcpy(rows.data(), matrix.row(index, matrix.outputs - rest),
                static_cast<uint64_t>(rest) * row_bytes);
    Interleave(matrix.format, matrix.inputs, matrix.phase, rows.data(),
               last_panels.data() + static_cast<uint64_t>(index) * panel_bytes);
  }
  return std::unique_ptr<CpuMatrix>(new CpuMatrix(std::move(matrix), std::move(last_panels), true));
}

void CpuMatrix::DecodeRowOf(int64_t index, int64_t output, float* out) const {
  if (!in_panels_) {
    DecodeRow(format(), matrix(index) + static_cast<uint64_t>(output) * row_bytes_, inputs(),
              phase(), 0, inputs(), out);
    return;
  }
  const int64_t panel = output / kPanelOutputs;
  const bool whole = (panel + 1) * kPanelOutputs <= outputs();
  const std::byte* at =
      whole ? matrix(index) + static_cast<uint64_t>(panel) * panel_bytes() : last_panel(index);
  DecodePanelRow(format(), inputs(), phase(), at, output % kPanelOutputs, out);
}

}  // namespace lockstep::kernels
