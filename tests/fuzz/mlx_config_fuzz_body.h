// What tests/fuzz/mlx_config_fuzz.cc runs on one input; fuzz_seeds_test.cc replays
// the seeds and damaged copies of them through it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/weights/safetensors.h"
#include "tests/fuzz/stored_rows.h"

namespace lockstep {

enum class MlxConfigOutcome { kNoHeader, kRefused, kRead };

// A config.json, a byte of 0, and the header of a safetensors file whose data are 1 MiB: an error
// of the model, or tensors all of whose rows lie in their own arrays.
inline MlxConfigOutcome FuzzMlxConfig(std::string_view data) {
  constexpr uint64_t kDataBytes = uint64_t{1} << 20;
  static const std::unique_ptr<RandomAccessFile> file =
      std::move(RandomAccessFile::Open("/proc/self/exe", ErrorKind::kModel)).value();
  const size_t end = data.find('\0');
  if (end == std::string_view::npos) return MlxConfigOutcome::kNoHeader;
  const std::string_view header_text = data.substr(end + 1);
  const uint64_t file_bytes = 8 + header_text.size() + kDataBytes;
  const StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(header_text, file_bytes, "fuzz.safetensors");
  if (!header.ok()) return MlxConfigOutcome::kNoHeader;
  std::map<std::string, StoredArray> arrays = header->tensors;
  for (auto& [name, array] : arrays) array.file = file.get();
  const StatusOr<std::map<std::string, TensorInfo>> tensors =
      TensorsOfArrays(arrays, std::string(data.substr(0, end)), "fuzz");
  if (!tensors.ok()) {
    LOCKSTEP_CHECK(KindOf(tensors.status()) == ErrorKind::kModel);
    return MlxConfigOutcome::kRefused;
  }
  CheckRows(*tensors, file_bytes);
  return MlxConfigOutcome::kRead;
}

}  // namespace lockstep
