// Files: whole small ones, exact ranges of large ones, and atomic replacement. Paths may also mean
// files of another machine, while those are mounted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// A piece of a file and where it goes.
struct FilePart {
  uint64_t offset = 0;
  std::span<std::byte> out;
};

// `count` pieces of `bytes` each, whose beginnings lie `stride` apart: a column of a row-major
// array.
struct StridedRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t stride = 0;  // of no matter if there is one piece
  uint64_t count = 1;

  uint64_t total() const { return bytes * count; }
};

// What places, sizes and memory of direct reads are multiples of.
inline constexpr uint64_t kDirectBytes = 4096;

// A file opened for reads of exact ranges. Thread-safe.
class RandomAccessFile {
 public:
  // `path`: of this machine, or of mounted files. Errors of opening and reading are of `kind`.
  static StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& path,
                                                          ErrorKind kind = ErrorKind::kUsage);
  virtual ~RandomAccessFile() = default;
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // Fills `out` from `offset`; an error if the file ends before.
  virtual Status Read(uint64_t offset, std::span<std::byte> out) const = 0;
  // The same for many parts, in any order: a file for which a read takes long by itself reads
  // several at once, and those that lie close together as one.
  virtual Status ReadParts(std::span<const FilePart> parts) const;
  // The pieces one behind the other; `out` has range.total() bytes.
  virtual Status ReadStrided(const StridedRange& range, std::span<std::byte> out) const;
  // Whether that brings the pieces alone. Otherwise reading what lies between them too is as good.
  virtual bool reads_strided() const { return false; }
  // The same as Read, past the page cache where the system can. `offset`, `out` and its size are
  // multiples of kDirectBytes. `out` may reach behind the end of the file; what it holds there is
  // not specified.
  virtual Status ReadDirect(uint64_t offset, std::span<std::byte> out) const;

 protected:
  RandomAccessFile(std::string path, uint64_t size_bytes)
      : path_(std::move(path)), size_bytes_(size_bytes) {}
  // How many bytes of a direct read lie in the file.
  uint64_t BytesInFile(uint64_t offset, std::span<std::byte> out) const;

 private:
  const std::string path_;
  const uint64_t size_bytes_;
};

// The files of one folder somewhere else. Thread-safe.
class FileSource {
 public:
  virtual ~FileSource() = default;
  virtual StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& name) const = 0;
  // False only if the file is known not to be there: what else is wrong, Open says.
  virtual bool Exists(const std::string& name) const = 0;
  // All names, as far as they are known.
  virtual std::vector<std::string> List() const = 0;
};

// While one lives, `directory` (no slash at its end) is a directory to all functions of this
// header, and "directory/NAME" the file NAME of `source`, which must outlive it.
class MountedFiles {
 public:
  MountedFiles(std::string directory, const FileSource& source);
  ~MountedFiles();
  MountedFiles(const MountedFiles&) = delete;
  MountedFiles& operator=(const MountedFiles&) = delete;

 private:
  const std::string directory_;
};

// The whole file as text, refused above `limit_bytes`.
StatusOr<std::string> ReadTextFile(const std::string& path,
                                   uint64_t limit_bytes = uint64_t{256} << 20,
                                   ErrorKind kind = ErrorKind::kUsage);
// A file that is written beside `path` and takes its place when it is whole: readers see the old
// file or the whole new one. Not thread-safe.
class FileReplacement {
 public:
  // `mode` as open(2) has it: 0600 for what is its owner's alone.
  static StatusOr<std::unique_ptr<FileReplacement>> Begin(const std::string& path, int mode);
  // Removes what has not taken the path.
  ~FileReplacement();
  FileReplacement(const FileReplacement&) = delete;
  FileReplacement& operator=(const FileReplacement&) = delete;

  // At the end.
  Status Write(std::span<const std::byte> bytes);
  // Everything written is on the disk, still beside the path.
  Status Sync();
  // Takes the path, after Sync.
  Status Replace();

  // Removes what processes left that were killed before they came to an end. One that still writes
  // fails in Replace.
  static void RemoveLeftOvers(const std::string& path);

 private:
  FileReplacement(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}
  const std::string path_, temporary_;
  int fd_;
};

// The same for contents that are there.
Status WriteFileAtomically(const std::string& path, std::span<const std::byte> contents);
// Makes `path` a directory with that mode if there is none; those above it as the system does.
Status MakeDirectory(const std::string& path, int mode);
bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);
// The names in a directory, sorted; files of this machine include folders and dot files.
StatusOr<std::vector<std::string>> NamesIn(const std::string& directory,
                                           ErrorKind kind = ErrorKind::kUsage);

}  // namespace lockstep
