// Reads the golden tensors (a plain safetensors reader of its own, so that ours is not its own
// witness).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lockstep::testing {

// `relative` below the root of the repository.
std::string SourcePath(const std::string& relative);
std::string ReadAll(const std::string& path);

// A file of golden tensors. A test that asks for a name that is not there, or for another type than
// the file has, fails.
class Golden {
 public:
  explicit Golden(const std::string& path);
  ~Golden();
  Golden(Golden&&) noexcept;

  bool Has(const std::string& name) const;
  std::vector<int64_t> Shape(const std::string& name) const;
  std::vector<float> Floats(const std::string& name) const;
  // int32 or int64 tensors as int32.
  std::vector<int32_t> Ids(const std::string& name) const;
  std::vector<double> Doubles(const std::string& name) const;
  // Of any type, as they lie in the file.
  std::vector<std::byte> Bytes(const std::string& name) const;

 private:
  struct File;  // the JSON library is slow to compile, and in golden.cc only
  std::unique_ptr<const File> file_;
};

}  // namespace lockstep::testing
