#include "runtime/weights/transcode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

constexpr int64_t kMostWeights = int64_t{1} << 48;

struct Shape {
  int64_t outputs = 1, inputs = 0;
};

StatusOr<Shape> ShapeOf(const TensorInfo& info, const std::string& name) {
  Shape shape;
  if (info.shape.size() == 1) {
    shape.inputs = info.shape[0];
  } else if (info.shape.size() == 2) {
    shape = {info.shape[0], info.shape[1]};
  } else {
    return ModelError("%s: tensor %s has shape %s; matrices and vectors are read",
                      info.data.file->path(), name, info.ShapeText());
  }
  int64_t weights = 0;
  if (shape.outputs < 0 || shape.inputs < 0 || shape.inputs >= kMostWeights ||
      __builtin_mul_overflow(shape.outputs, shape.inputs, &weights) || weights >= kMostWeights) {
    return ModelError("%s: tensor %s has shape %s, which is too large", info.data.file->path(),
                      name, info.ShapeText());
  }
  return shape;
}

// Bytes of an element of plain scales; 0 if they are not plain.
uint64_t PlainBytes(const std::string& type) {
  return type == "F32" ? 4 : type == "F16" || type == "BF16" ? 2 : 0;
}

bool IsTiled(const TensorInfo& info) { return info.format.group_blocks != kWholeRow; }

// How the arrays of a tensor divide over its rows.
struct RowSizes {
  uint64_t data = 0, scales = 0, biases = 0;  // bytes per row; of tiled scales: per 128 rows
  bool one_scale = false;                     // the scales are one for the whole tensor
};

StatusOr<RowSizes> SizesOf(const TensorInfo& info, const std::string& name, const Shape& shape) {
  const WeightFormat& format = info.format;
  const auto inputs = static_cast<uint64_t>(shape.inputs);
  const uint64_t scale_bytes = PlainBytes(info.scales.type);
  RowSizes sizes;
  bool fits = true;
  switch (info.storage) {
    case Storage::kPlain:
      fits = format.plain() && info.data.type == NameOf(format.plain_type());
      if (fits) sizes.data = inputs * SizeOf(format.plain_type());
      break;
    case Storage::kGgml: {
      StatusOr<uint64_t> bytes = GgmlRowBytes(format, shape.inputs);
      if (!bytes.ok()) return Annotate(bytes.status(), info.data.file->path() + ": tensor " + name);
      sizes.data = *bytes;
      break;
    }
    case Storage::kFp8:
      fits = format.encoding == Encoding::kFp8 && scale_bytes > 0;
      sizes.data = inputs;
      sizes.one_scale = !IsTiled(info) && info.scales.bytes == scale_bytes;
      sizes.scales = IsTiled(info) ? (inputs + kFp8Tile - 1) / kFp8Tile * scale_bytes : scale_bytes;
      fits = fits && (!IsTiled(info) || format.group_blocks == kFp8Tile / kBlockWeights);
      break;
    case Storage::kMlx: {
      fits = format.encoding == Encoding::kMlx && scale_bytes > 0 && format.group_blocks > 0 &&
             scale_bytes == SizeOf(format.scale_type) && info.scales.type == info.biases.type &&
             shape.inputs % (format.group_blocks * kBlockWeights) == 0;
      if (!fits) break;
      sizes.data = inputs / 8 * format.bits;
      sizes.scales =
          inputs / kBlockWeights / static_cast<uint64_t>(format.group_blocks) * scale_bytes;
      sizes.biases = sizes.scales;
      break;
    }
    case Storage::kNvfp4:
      fits = format.encoding == Encoding::kNvfp4 && shape.inputs % kNvfp4Group == 0 &&
             info.whole_scale.bytes == sizeof(float);
      sizes.data = inputs / 2;
      sizes.scales = inputs / kNvfp4Group;
      break;
    case Storage::kPortable:   // a slice, which has no rows of the whole
    case Storage::kConverted:  // has the rows of its original
      fits = false;
      break;
  }
  if (fits) return sizes;
  return ModelError("%s: tensor %s is %s %s, which cannot be read as %s", info.data.file->path(),
                    name, info.data.type, info.ShapeText(), format.Name());
}

bool Holds(const StoredArray& array, uint64_t bytes) {
  return bytes == 0 || (array.present() && array.bytes == bytes);
}

float PlainValue(const std::byte* at, const std::string& type) {
  if (type == "F32") {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return type == "BF16" ? Bf16ToFloat(bits) : HalfToFloat(bits);
}

// `from`: the scales of this row, or of its tiles.
void Fp8Row(const TensorInfo& info, const std::byte* data, const std::byte* from, int64_t inputs,
            std::byte* portable) {
  const RowLayout layout = LayoutOf(info.format, inputs, 0);
  const uint64_t scale_bytes = PlainBytes(info.scales.type);
  for (uint64_t i = 0; i < layout.outer_entries; ++i) {
    const float scale = PlainValue(from + i * scale_bytes, info.scales.type);
    std::memcpy(portable + i * sizeof scale, &scale, sizeof scale);
  }
  if (inputs > 0) std::memcpy(portable + layout.codes_at, data, static_cast<size_t>(inputs));
}

void MlxRow(const TensorInfo& info, const std::byte* data, const std::byte* scales,
            const std::byte* biases, int64_t inputs, std::byte* portable) {
  const RowLayout layout = LayoutOf(info.format, inputs, 0);
  const size_t scale_bytes = SizeOf(info.format.scale_type);
  for (uint64_t i = 0; i < layout.outer_entries; ++i) {
    std::memcpy(portable + 2 * i * scale_bytes, scales + i * scale_bytes, scale_bytes);
    std::memcpy(portable + (2 * i + 1) * scale_bytes, biases + i * scale_bytes, scale_bytes);
  }
  // Words of 32 bits, lowest code first: as bytes, one bit string.
  if (inputs > 0) std::memcpy(portable + layout.codes_at, data, layout.row_bytes - layout.codes_at);
}

void Nvfp4Row(const TensorInfo& info, const std::byte* data, const std::byte* scales, float whole,
              int64_t inputs, std::byte* portable) {
  const RowLayout layout = LayoutOf(info.format, inputs, 0);
  if (inputs == 0) return;
  std::memcpy(portable, &whole, sizeof whole);
  // The last block may be half full.
  std::memset(portable + layout.inner_at, 0, layout.row_bytes - layout.inner_at);
  std::memcpy(portable + layout.inner_at, scales, static_cast<size_t>(inputs / kNvfp4Group));
  const auto code = [data, inputs](int64_t index) {
    if (index >= inputs) return std::byte{0};
    return (data[index / 2] >> (index % 2 * 4)) & std::byte{15};
  };
  std::byte* codes = portable + layout.codes_at;
  for (int64_t block = 0; block < inputs; block += kBlockWeights) {
    for (int64_t j = 0; j < 16; ++j) *codes++ = code(block + j) | code(block + j + 16) << 4;
  }
}

template <typename Bits>
bool AllFinite(const std::byte* data, uint64_t count, Bits exponent) {
  Bits bad = 0;
  for (uint64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    bad |= (bits & exponent) == exponent;
  }
  return bad == 0;
}

bool AllFinite(DType type, const std::byte* data, uint64_t count) {
  switch (type) {
    case DType::kF32:
      return AllFinite<uint32_t>(data, count, 0x7f800000u);
    case DType::kF16:
      return AllFinite<uint16_t>(data, count, 0x7c00u);
    case DType::kBF16:
      return AllFinite<uint16_t>(data, count, 0x7f80u);
  }
  return false;
}

bool NoFp8Nan(const std::byte* codes, uint64_t count) {
  return AllFinite<uint8_t>(codes, count, 0x7f);
}

// Scales may be finite and their products with codes not. A look at the scales is enough as a rule:
// codes and inner scales are below 2^14.
bool ProductsAreFinite(const WeightFormat& format, const std::byte* row, int64_t inputs) {
  constexpr float kModest = 1e34f;
  constexpr uint8_t kModestExponent = 127 + 113;  // of e8m0: 2^113
  const RowLayout layout = LayoutOf(format, inputs, 0);
  bool modest = true;
  if (format.encoding == Encoding::kFp8 || format.encoding == Encoding::kNvfp4 ||
      format.encoding == Encoding::kMlx) {
    const DType type = format.encoding == Encoding::kMlx ? format.scale_type : DType::kF32;
    const std::string name(NameOf(type));
    for (uint64_t at = 0; at < layout.inner_at; at += SizeOf(type)) {
      const float scale = PlainValue(row + at, name);
      const bool divides = format.encoding == Encoding::kNvfp4 && scale < 0;
      modest = modest && (divides ? scale < -1 / kModest : std::fabs(scale) < kModest);
    }
  } else if (format.encoding == Encoding::kMxfp4) {
    for (uint64_t at = layout.inner_at; at < layout.codes_at; ++at)
      modest = modest && std::to_integer<uint8_t>(row[at]) < kModestExponent;
  }
  if (modest) return true;
  std::vector<float> values(static_cast<size_t>(inputs));
  DecodeRow(format, row, inputs, 0, 0, inputs, values.data());
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

int64_t ColumnUnit(const WeightFormat& format) {
  return format.group_blocks > 0 ? format.group_blocks * kBlockWeights : format.cut_weights();
}

Range WholeColumnUnits(const WeightFormat& format, Range columns, int64_t width) {
  if (columns.empty()) return {};
  const int64_t unit = ColumnUnit(format);
  const int64_t end = (columns.end + unit - 1) / unit * unit;
  return {columns.begin / unit * unit, std::min(end, width)};
}

TensorPart WholeRows(const TensorInfo& info, Range rows) {
  return {rows, {0, info.shape.empty() ? 0 : info.shape.back()}};
}

StatusOr<PartRanges> RangesOf(const TensorInfo& info, const std::string& name,
                              const TensorPart& part) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Shape shape, ShapeOf(info, name));
  const auto [rows, columns] = part;
  if (rows.begin < 0 || rows.begin > rows.end || rows.end > shape.outputs) {
    return InternalError("tensor %s has %d rows; [%d, %d) asked for", name, shape.outputs,
                         rows.begin, rows.end);
  }
  const int64_t unit = ColumnUnit(info.format);
  if (columns.begin < 0 || columns.begin > columns.end || columns.end > shape.inputs ||
      columns.begin % unit != 0 || (columns.end % unit != 0 && columns.end != shape.inputs)) {
    return InternalError("tensor %s has %d columns; [%d, %d) asked for", name, shape.inputs,
                         columns.begin, columns.end);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const RowSizes whole, SizesOf(info, name, shape));
  // Where the part begins in a row is where a matrix of the columns before it would end.
  LOCKSTEP_ASSIGN_OR_RETURN(const RowSizes before, SizesOf(info, name, {1, columns.begin}));
  LOCKSTEP_ASSIGN_OR_RETURN(const RowSizes wanted, SizesOf(info, name, {1, columns.size()}));
  const bool tiled = info.storage == Storage::kFp8 && IsTiled(info);
  const bool scale_of_row = info.storage == Storage::kFp8 && !tiled;
  const int64_t scale_rows = whole.one_scale ? 1
                             : tiled         ? (shape.outputs + kFp8Tile - 1) / kFp8Tile
                                             : shape.outputs;
  const auto total = static_cast<uint64_t>(shape.outputs);
  if (!Holds(info.data, total * whole.data) ||
      !Holds(info.scales, static_cast<uint64_t>(scale_rows) * whole.scales) ||
      !Holds(info.biases, total * whole.biases)) {
    return ModelError("%s: tensor %s is %s, but its arrays hold %d bytes, which is another size",
                      info.data.file->path(), name, info.ShapeText(), info.stored_bytes());
  }
  Range scales = rows;
  if (tiled) scales = {rows.begin / kFp8Tile, (rows.end + kFp8Tile - 1) / kFp8Tile};
  if (whole.one_scale) scales = {0, 1};
  if (rows.empty()) scales = {};
  const auto range = [](const StoredArray& array, Range of, uint64_t stride, uint64_t at,
                        uint64_t bytes) {
    const auto count = static_cast<uint64_t>(of.size());
    const uint64_t begin = array.offset + static_cast<uint64_t>(of.begin) * stride + at;
    if (bytes == stride || bytes == 0) return StridedRange{begin, count * bytes};
    return StridedRange{begin, bytes, stride, count};
  };
  PartRanges ranges;
  ranges.data = range(info.data, rows, whole.data, before.data, wanted.data);
  ranges.scales =
      range(info.scales, scales, whole.scales, scale_of_row ? 0 : before.scales, wanted.scales);
  ranges.biases = range(info.biases, rows, whole.biases, before.biases, wanted.biases);
  if (info.storage == Storage::kNvfp4 && !rows.empty())
    ranges.whole_scale = {info.whole_scale.offset, sizeof(float)};
  return ranges;
}

Status TranscodePart(const TensorInfo& info, const std::string& name, const PartBytes& bytes,
                     const TensorPart& part, std::byte* portable) {
  if (part.rows.empty()) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(const PartRanges ranges, RangesOf(info, name, part));
  const int64_t inputs = part.columns.size();
  LOCKSTEP_ASSIGN_OR_RETURN(const RowSizes sizes, SizesOf(info, name, {1, inputs}));
  LOCKSTEP_CHECK(bytes.data.size() == ranges.data.total() &&
                 bytes.scales.size() == ranges.scales.total() &&
                 bytes.biases.size() == ranges.biases.total() &&
                 bytes.whole_scale.size() == ranges.whole_scale.total());
  float whole = 1;
  if (info.storage == Storage::kNvfp4) {
    std::memcpy(&whole, bytes.whole_scale.data(), sizeof whole);
    if (!std::isfinite(whole) || whole < 0 || (whole == 0 && info.whole_scale_divides)) {
      return ModelError("%s: tensor %s has %g as the scale for all of it; the checkpoint is broken",
                        info.data.file->path(), name, whole);
    }
    if (info.whole_scale_divides) whole = -whole;  // weight_format.h
  }
  const uint64_t row_bytes = LayoutOf(info.format, inputs, 0).row_bytes;
  const int64_t first = part.rows.begin;
  for (int64_t row = 0; row < part.rows.size(); ++row, portable += row_bytes) {
    const std::byte* data = bytes.data.data() + static_cast<uint64_t>(row) * sizes.data;
    uint64_t scale_row = static_cast<uint64_t>(row);
    if (sizes.one_scale) scale_row = 0;
    if (info.storage == Storage::kFp8 && IsTiled(info))
      scale_row = static_cast<uint64_t>((first + row) / kFp8Tile - first / kFp8Tile);
    const std::byte* scales = bytes.scales.data() + scale_row * sizes.scales;
    switch (info.storage) {
      case Storage::kPlain:
        if (row_bytes > 0) std::memcpy(portable, data, row_bytes);
        break;
      case Storage::kGgml:
        GgmlToPortable(info.format, data, inputs, portable);
        break;
      case Storage::kFp8:
        Fp8Row(info, data, scales, inputs, portable);
        break;
      case Storage::kMlx:
        MlxRow(info, data, scales, bytes.biases.data() + static_cast<uint64_t>(row) * sizes.biases,
               inputs, portable);
        break;
      case Storage::kNvfp4:
        Nvfp4Row(info, data, scales, whole, inputs, portable);
        break;
      case Storage::kPortable:  // RangesOf has no ranges of these
      case Storage::kConverted:
        break;
    }
    if (!RowIsFinite(info.format, portable, inputs, 0)) {
      return ModelError(
          "%s: tensor %s holds values or scales that are not finite (NaN or infinity), first in "
          "row %d; the checkpoint is broken",
          info.data.file->path(), name, first + row);
    }
    if (!ProductsAreFinite(info.format, portable, inputs)) {
      return ModelError(
          "%s: tensor %s holds scales that make weights too large for float32, first in row %d; "
          "the checkpoint is broken",
          info.data.file->path(), name, first + row);
    }
  }
  return OkStatus();
}

bool RowIsFinite(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase) {
  const RowLayout layout = LayoutOf(format, inputs, phase);
  const std::byte* inner = row + layout.inner_at;
  const std::byte* codes = row + layout.codes_at;
  const auto outer_is = [&](DType type) {
    return AllFinite(type, row, layout.inner_at / SizeOf(type));
  };
  const uint64_t inner_bytes = layout.codes_at - layout.inner_at;
  switch (format.encoding) {
    case Encoding::kF32:
    case Encoding::kF16:
    case Encoding::kBF16:
      return AllFinite(format.plain_type(), codes, static_cast<uint64_t>(inputs));
    case Encoding::kFp8:
      return outer_is(DType::kF32) && NoFp8Nan(codes, static_cast<uint64_t>(inputs));
    case Encoding::kQ4_0:
    case Encoding::kQ4_1:
    case Encoding::kQ5_0:
    case Encoding::kQ5_1:
    case Encoding::kQ8_0:
    case Encoding::kIq4Nl:
      return AllFinite(DType::kF16, inner, inner_bytes / 2);
    case Encoding::kQ2_K:
    case Encoding::kQ3_K:
    case Encoding::kQ4_K:
    case Encoding::kQ5_K:
    case Encoding::kQ6_K:
    case Encoding::kIq4Xs:
      return outer_is(DType::kF16);
    case Encoding::kMxfp4:
      return AllFinite<uint8_t>(inner, inner_bytes, 0xff);
    case Encoding::kNvfp4:
      return outer_is(DType::kF32) && NoFp8Nan(inner, inner_bytes);
    case Encoding::kMlx:
      return outer_is(format.scale_type);
  }
  return false;
}

}  // namespace lockstep
