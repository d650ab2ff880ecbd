// A matrix as the CPU backend keeps it: in the portable layout, or as panels (interleave.h).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/interleave.h"
#include "runtime/tensor/buffer.h"

namespace lockstep::kernels {

class CpuMatrix final : public PackedMatrix {
 public:
  // Keeps the portable layout.
  static std::unique_ptr<CpuMatrix> Portable(HostMatrix matrix);
  // Turns every sixteen rows of the first matrix that is not yet packed into a panel in their
  // place; with a pool, on all its threads.
  static void TurnNext(HostMatrix* matrix, ThreadPool* pool);
  // The same for all that are left. Outputs behind the last whole panel of a
  // matrix get panels of their own.
  static StatusOr<std::unique_ptr<CpuMatrix>> Panels(HostMatrix matrix);
  // What Panels takes for the panels of those outputs.
  static uint64_t LastPanelBytes(const HostMatrix& shape);

  // The matrix of Portable, back; nothing else may be asked of this one then.
  HostMatrix TakePortable();

  bool in_panels() const { return in_panels_; }
  const WeightFormat& format() const { return matrix_.format; }
  int64_t phase() const { return matrix_.phase; }
  uint64_t row_bytes() const { return row_bytes_; }
  uint64_t panel_bytes() const { return row_bytes_ * kPanelOutputs; }
  // Row 0, or panel 0, of one matrix of the stack.
  const std::byte* matrix(int64_t index) const {
    return matrix_.data.data() + static_cast<uint64_t>(index * outputs()) * row_bytes_;
  }
  // The panel of the last outputs() % 16 outputs of one matrix, nullptr if there are none.
  const std::byte* last_panel(int64_t index) const {
    if (last_panels_.bytes() == 0) return nullptr;
    return last_panels_.data() + static_cast<uint64_t>(index) * panel_bytes();
  }
  void DecodeRowOf(int64_t index, int64_t output, float* out) const;

 private:
  CpuMatrix(HostMatrix matrix, Buffer last_panels, bool in_panels);

  HostMatrix matrix_;
  Buffer last_panels_;
  bool in_panels_;
  uint64_t row_bytes_;
};

}  // namespace lockstep::kernels
