// Files: whole small ones, exact ranges of large ones, and atomic replacement.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "runtime/base/status.h"

namespace lockstep {

// A file opened for reads of exact ranges (no read-ahead). Thread-safe.
class RandomAccessFile {
 public:
  // Errors of opening and reading are of `kind`.
  static StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& path,
                                                          ErrorKind kind = ErrorKind::kUsage);
  ~RandomAccessFile();
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // Fills `out` from `offset`; an error if the file ends before.
  Status Read(uint64_t offset, std::span<std::byte> out) const;

 private:
  RandomAccessFile(std::string path, ErrorKind kind, int fd, uint64_t size_bytes)
      : path_(std::move(path)), kind_(kind), fd_(fd), size_bytes_(size_bytes) {}
  std::string path_;
  ErrorKind kind_;
  int fd_;
  uint64_t size_bytes_;
};

// The whole file as text, refused above `limit_bytes`.
StatusOr<std::string> ReadTextFile(const std::string& path,
                                   uint64_t limit_bytes = uint64_t{256} << 20,
                                   ErrorKind kind = ErrorKind::kUsage);
// Writes beside `path` and renames over it: readers see the old file or the whole new one.
Status WriteFileAtomically(const std::string& path, std::span<const std::byte> contents);
bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);

}  // namespace lockstep
