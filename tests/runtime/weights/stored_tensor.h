// Tensors in memory that pretend to lie in files, for tests of what becomes of their rows.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/weights/transcode.h"
#include "tests/support/golden.h"

namespace lockstep {

using Bytes = std::vector<std::byte>;

inline std::string CasesPath(const std::string& name) {
  return testing::SourcePath("tests/goldens/kernels/" + name + ".safetensors");
}

template <typename T>
Bytes BytesOf(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// NaN equals NaN; all else bit for bit.
inline void ExpectSameBits(const std::vector<float>& expected, const std::vector<float>& actual,
                           const std::string& what) {
  ASSERT_EQ(expected.size(), actual.size()) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(expected[i]), std::bit_cast<uint32_t>(actual[i]))
        << what << ", weight " << i << ": " << expected[i] << " and " << actual[i];
  }
}

// A tensor whose arrays are in memory. They pretend to lie in a file, at places of their own.
class Tensor {
 public:
  Tensor(Storage storage, const WeightFormat& format, std::vector<int64_t> shape) {
    auto file = RandomAccessFile::Open(CasesPath("dequant_cases"));
    EXPECT_TRUE(file.ok());
    file_ = *std::move(file);
    info.storage = storage;
    info.format = format;
    info.shape = std::move(shape);
  }
  void Set(StoredArray* array, const std::string& type, Bytes bytes) {
    const auto index = static_cast<uint64_t>(reinterpret_cast<std::byte*>(array) -
                                             reinterpret_cast<std::byte*>(&info));
    *array = {type, {}, file_.get(), index << 20, bytes.size()};
    contents_[index] = std::move(bytes);
  }

  Status Transcode(int64_t first, int64_t rows, Bytes* portable) {
    return Transcode(WholeRows(info, {first, first + rows}), portable);
  }
  Status Transcode(const TensorPart& part, Bytes* portable) {
    LOCKSTEP_ASSIGN_OR_RETURN(const PartRanges ranges, RangesOf(info, "w", part));
    const Bytes data = Read(ranges.data), scales = Read(ranges.scales);
    const Bytes biases = Read(ranges.biases), whole_scale = Read(ranges.whole_scale);
    const size_t row_bytes = LayoutOf(info.format, part.columns.size(), 0).row_bytes;
    portable->assign(static_cast<size_t>(part.rows.size()) * row_bytes, std::byte{0x5a});
    return TranscodePart(info, "w", {data, scales, biases, whole_scale}, part, portable->data());
  }
  std::vector<float> Decoded(int64_t first, int64_t rows) {
    Bytes portable;
    const Status status = Transcode(first, rows, &portable);
    EXPECT_TRUE(status.ok()) << MessageOf(status);
    const int64_t inputs = info.shape.back();
    std::vector<float> values(static_cast<size_t>(rows * inputs));
    for (int64_t row = 0; status.ok() && row < rows; ++row) {
      DecodeRow(info.format, portable.data() + static_cast<size_t>(row) * row_bytes(), inputs, 0, 0,
                inputs, values.data() + row * inputs);
    }
    return values;
  }
  std::string Error() {
    Bytes portable;
    const Status status = Transcode(0, info.shape.size() == 2 ? info.shape[0] : 1, &portable);
    return status.ok() ? "" : MessageOf(status);
  }

  TensorInfo info;

 private:
  size_t row_bytes() const { return LayoutOf(info.format, info.shape.back(), 0).row_bytes; }
  Bytes Read(const StridedRange& range) {
    Bytes out;
    for (uint64_t i = 0; range.total() > 0 && i < range.count; ++i) {
      const Bytes& bytes = contents_.at(range.offset >> 20);
      const uint64_t offset = (range.offset & ((1u << 20) - 1)) + i * range.stride;
      EXPECT_LE(offset + range.bytes, bytes.size());
      const auto piece = std::span(bytes).subspan(offset, range.bytes);
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return out;
  }
  std::unique_ptr<RandomAccessFile> file_;
  std::map<uint64_t, Bytes> contents_;
};

inline constexpr const char* kGgmlTypes[] = {"Q4_0",   "Q4_1",   "Q5_0",  "Q5_1", "Q8_0",
                                             "Q2_K",   "Q3_K",   "Q4_K",  "Q5_K", "Q6_K",
                                             "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"};

}  // namespace lockstep
