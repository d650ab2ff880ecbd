// Weights to fewer bits: float32 rows to portable rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep {

// Counts up with every change of the bytes that QuantizeRow writes: work that an older build began
// is then not continued with other codes.
inline constexpr uint64_t kQuantizerVersion = 1;

// What `--quantize` calls a format: q8_0, q6_k, q5_k, q4_k, q4_0, fp8 (a scale per row). An error
// lists them.
StatusOr<WeightFormat> QuantizedFormat(std::string_view name);

// Writes the row of LayoutOf(format, inputs, 0).row_bytes that comes near `weights`. `format` is
// one of the above; inputs is a multiple of 32 (any number for fp8): a row need not be whole
// super-blocks of 256. The weights are finite. A block's codes depend on its super-block alone
// (fp8: on the row), so quantize whole rows and cut afterwards. A row that was decoded from Q8_0 or
// Q4_0 as ggml encodes them gets its codes back. Any thread; no state.
void QuantizeRow(const WeightFormat& format, const float* weights, int64_t inputs, std::byte* row);

}  // namespace lockstep
