// The blocks of GGUF files: their types, their sizes, and how a row of them becomes a portable row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep {

// The format of a ggml_type number, as GGUF files have it; an error that names the type and the
// readable ones for those that this build does not read.
StatusOr<WeightFormat> FormatOfGgml(uint32_t type);
// The same by name: "Q4_K", "BF16".
StatusOr<WeightFormat> FormatOfGgml(std::string_view name);

// Weights per block of a ggml row: 1 for plain numbers, 32, 64 (NVFP4) or 256. 0 for formats that
// ggml does not have (FP8, MLX).
int64_t GgmlBlockWeights(const WeightFormat& format);
// Bytes of a row; an error if it is not whole blocks or the format is none of ggml's.
StatusOr<uint64_t> GgmlRowBytes(const WeightFormat& format, int64_t inputs);

// A row of whole blocks to a portable row of LayoutOf(format, inputs, 0).row_bytes. Bits that no
// encoder makes are kept too: every pattern decodes to what ggml makes of it.
void GgmlToPortable(const WeightFormat& format, const std::byte* blocks, int64_t inputs,
                    std::byte* portable);

}  // namespace lockstep
