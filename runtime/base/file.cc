#include "runtime/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/base/os.h"
#include "runtime/base/own_file.h"

namespace lockstep {
namespace {

// Stands between a file's name and the id of the process that writes what is to replace it.
constexpr char kTemporary[] = ".tmp.";

Status FileError(const std::string& path, const char* what, ErrorKind kind = ErrorKind::kUsage) {
  return MakeError(kind, absl::StrFormat("%s: cannot %s: %s", path, what, std::strerror(errno)));
}

// A file of this machine.
class LocalFile final : public RandomAccessFile {
 public:
  LocalFile(std::string path, ErrorKind kind, int fd, uint64_t size_bytes)
      : RandomAccessFile(std::move(path), size_bytes), kind_(kind), fd_(fd) {}
  ~LocalFile() override {
    close(fd_);
    if (direct_fd_ >= 0) close(direct_fd_);
  }

  Status Read(uint64_t offset, std::span<std::byte> out) const override {
    constexpr size_t kMaxRead = size_t{64} << 20;
    size_t done = 0;
    while (done < out.size()) {
      const size_t want = std::min(out.size() - done, kMaxRead);
      const ssize_t got = pread(fd_, out.data() + done, want, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return FileError(path(), "read", kind_);
      if (got == 0) {
        return ModelError(
            "%s: ends at byte %d, expected at least %d; the file was cut, fetch it again", path(),
            offset + done, offset + out.size());
      }
      done += static_cast<size_t>(got);
    }
    return OkStatus();
  }

  Status ReadDirect(uint64_t offset, std::span<std::byte> out) const override {
    std::call_once(direct_once_, [this] { OpenDirect(); });
    const uint64_t bytes = BytesInFile(offset, out);
    uint64_t done = 0;
    while (direct_ && done < bytes) {
      const ssize_t got = pread(direct_fd_, out.data() + done, out.size() - done,
                                static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      // Some file systems open a file for direct reads and then do none.
      if (got < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) HasNoDirectReads();
      // What is wrong, the other way finds out as well, or it does what this one cannot.
      if (got < static_cast<ssize_t>(std::min(bytes - done, kDirectBytes))) break;
      done = std::min(bytes, done + static_cast<uint64_t>(got));
      if (done < bytes) done -= done % kDirectBytes;
    }
    return Read(offset + done, out.subspan(done, bytes - done));
  }

 private:
  void OpenDirect() const {
    direct_fd_ = os::OpenDirect(path().c_str());
    if (direct_fd_ < 0) return HasNoDirectReads();
    // Another file may have that name by now.
    struct stat mine {
    }, direct{};
    direct_ = fstat(fd_, &mine) == 0 && fstat(direct_fd_, &direct) == 0 &&
              mine.st_dev == direct.st_dev && mine.st_ino == direct.st_ino;
  }

  void HasNoDirectReads() const {
    const char* const why = std::strerror(errno);
    direct_ = false;
    static std::atomic<bool> told = false;
    if (told.exchange(true)) return;
    log::Info("%s: is read through the page cache, since its file system has no direct reads (%s)",
              path(), why);
  }

  const ErrorKind kind_;
  const int fd_;
  mutable std::once_flag direct_once_;
  mutable int direct_fd_ = -1;  // opened by the first direct read
  mutable std::atomic<bool> direct_ = false;
};

StatusOr<std::unique_ptr<RandomAccessFile>> OpenLocal(const std::string& path, ErrorKind kind) {
  // O_NONBLOCK: opening a pipe would wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(path, "open", kind);
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return MakeError(kind, path + ": not a regular file");
  }
  os::AdviseExactReads(fd);
  return std::make_unique<LocalFile>(path, kind, fd, static_cast<uint64_t>(info.st_size));
}

// Of what is open: it is this user's, and no other may write it.
Status CheckOwn(const std::string& path, const struct stat& info) {
  if (info.st_uid != geteuid()) {
    return UsageError("%s: belongs to user %d, not to this one, %d; name a directory of your own",
                      path, info.st_uid, geteuid());
  }
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) == 0) return OkStatus();
  return UsageError("%s: others may write it (mode %03o); take that from them with chmod go-w",
                    path, info.st_mode & 0777);
}

// A descriptor of the directory, which is this user's alone.
StatusOr<int> OpenOwnDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (fd < 0) return FileError(path, "open");
  struct stat info {};
  const Status own = fstat(fd, &info) == 0 ? CheckOwn(path, info) : FileError(path, "look at");
  if (own.ok()) return fd;
  close(fd);
  return own;
}

std::string DirectoryOf(const std::string& path) {
  const std::string above = std::filesystem::path(path).parent_path().string();
  return above.empty() ? "." : above;
}

// The mounted directories. Few: looked through one by one.
struct Mounts {
  std::mutex mutex;
  std::map<std::string, const FileSource*> sources;

  static Mounts& Get() {
    static Mounts mounts;
    return mounts;
  }
};

// The source that `path` belongs to, and the name there (empty: the directory itself); nullptr for
// files of this machine.
const FileSource* MountOf(const std::string& path, std::string* name) {
  Mounts& mounts = Mounts::Get();
  const std::lock_guard lock(mounts.mutex);
  for (const auto& [directory, source] : mounts.sources) {
    if (path.compare(0, directory.size(), directory) != 0) continue;
    if (path.size() > directory.size() && path[directory.size()] != '/') continue;
    *name = path.size() > directory.size() ? path.substr(directory.size() + 1) : "";
    return source;
  }
  return nullptr;
}

}  // namespace

StatusOr<std::unique_ptr<RandomAccessFile>> RandomAccessFile::Open(const std::string& path,
                                                                   ErrorKind kind) {
  std::string name;
  const FileSource* source = MountOf(path, &name);
  if (source == nullptr) return OpenLocal(path, kind);
  if (name.empty()) return MakeError(kind, path + ": not a regular file");
  return source->Open(name);
}

Status CheckOwnDirectory(const std::string& path) {
  LOCKSTEP_ASSIGN_OR_RETURN(const int fd, OpenOwnDirectory(path));
  close(fd);
  return OkStatus();
}

StatusOr<std::unique_ptr<RandomAccessFile>> OpenOwnFile(const std::string& path) {
  // What is mounted is this process's own.
  if (std::string name; MountOf(path, &name) != nullptr) return RandomAccessFile::Open(path);
  LOCKSTEP_ASSIGN_OR_RETURN(const int directory, OpenOwnDirectory(DirectoryOf(path)));
  const int fd = openat(directory, std::filesystem::path(path).filename().c_str(),
                        O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  const int error = errno;
  close(directory);
  errno = error;
  if (fd < 0 && errno == ENOENT) return std::unique_ptr<RandomAccessFile>();
  if (fd < 0 && errno == ELOOP) return UsageError("%s: is a link, not a file of its own", path);
  if (fd < 0) return FileError(path, "open");
  struct stat info {};
  Status own = OkStatus();
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    own = UsageError("%s: not a regular file", path);
  } else {
    own = CheckOwn(path, info);
  }
  if (!own.ok()) {
    close(fd);
    return own;
  }
  return std::unique_ptr<RandomAccessFile>(std::make_unique<LocalFile>(
      path, ErrorKind::kUsage, fd, static_cast<uint64_t>(info.st_size)));
}

Status RandomAccessFile::ReadParts(std::span<const FilePart> parts) const {
  for (const FilePart& part : parts) LOCKSTEP_RETURN_IF_ERROR(Read(part.offset, part.out));
  return OkStatus();
}

Status RandomAccessFile::ReadStrided(const StridedRange& range, std::span<std::byte> out) const {
  LOCKSTEP_CHECK(out.size() == range.total());
  for (uint64_t i = 0; i < range.count; ++i) {
    LOCKSTEP_RETURN_IF_ERROR(
        Read(range.offset + i * range.stride, out.subspan(i * range.bytes, range.bytes)));
  }
  return OkStatus();
}

Status RandomAccessFile::ReadDirect(uint64_t offset, std::span<std::byte> out) const {
  return Read(offset, out.first(BytesInFile(offset, out)));
}

uint64_t RandomAccessFile::BytesInFile(uint64_t offset, std::span<std::byte> out) const {
  LOCKSTEP_CHECK(offset % kDirectBytes == 0 && out.size() % kDirectBytes == 0);
  LOCKSTEP_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kDirectBytes == 0);
  return std::min<uint64_t>(out.size(), size_bytes_ - std::min(size_bytes_, offset));
}

MountedFiles::MountedFiles(std::string directory, const FileSource& source)
    : directory_(std::move(directory)) {
  Mounts& mounts = Mounts::Get();
  const std::lock_guard lock(mounts.mutex);
  LOCKSTEP_CHECK(mounts.sources.emplace(directory_, &source).second);
}

MountedFiles::~MountedFiles() {
  Mounts& mounts = Mounts::Get();
  const std::lock_guard lock(mounts.mutex);
  mounts.sources.erase(directory_);
}

StatusOr<std::string> ReadTextFile(const std::string& path, uint64_t limit_bytes, ErrorKind kind) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto file, RandomAccessFile::Open(path, kind));
  if (file->size_bytes() > limit_bytes) {
    return MakeError(
        kind, absl::StrFormat("%s: %d bytes, more than the %d that such a file may have", path,
                              file->size_bytes(), limit_bytes));
  }
  std::string text(file->size_bytes(), '\0');
  LOCKSTEP_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

StatusOr<std::unique_ptr<FileReplacement>> FileReplacement::Begin(const std::string& path,
                                                                  int mode) {
  const std::string temporary = path + kTemporary + std::to_string(os::ProcessId());
  // A new file, with this mode and nobody's link, even if one was left under the name.
  (void)unlink(temporary.c_str());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) return FileError(temporary, "create");
  return std::unique_ptr<FileReplacement>(new FileReplacement(path, temporary, fd));
}

FileReplacement::~FileReplacement() {
  if (fd_ < 0) return;
  (void)close(fd_);
  (void)unlink(temporary_.c_str());
}

Status FileReplacement::Write(std::span<const std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t wrote =
        write(fd_, bytes.data() + done, std::min(bytes.size() - done, size_t{64} << 20));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return FileError(temporary_, "write");
    done += static_cast<size_t>(wrote);
  }
  return OkStatus();
}

Status FileReplacement::Sync() {
  return fsync(fd_) == 0 ? OkStatus() : FileError(temporary_, "write");
}

Status FileReplacement::Replace() {
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return FileError(path_, "replace");
  if (close(std::exchange(fd_, -1)) != 0) return FileError(path_, "write");
  // The name too is on the disk. Some file systems cannot say so (EINVAL).
  const std::string directory = DirectoryOf(path_);
  const int fd = open(directory.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  if (fd < 0) return errno == EACCES ? OkStatus() : FileError(directory, "open");
  const bool synced = fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP;
  const Status status = synced ? OkStatus() : FileError(directory, "write");
  close(fd);
  return status;
}

void FileReplacement::RemoveLeftOvers(const std::string& path) {
  const std::filesystem::path whole(path);
  const std::string beginning = whole.filename().string() + kTemporary;
  std::error_code error;
  std::filesystem::directory_iterator entry(whole.parent_path(), error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (!entry->path().filename().string().starts_with(beginning)) continue;
    std::error_code ignored;
    std::filesystem::remove(entry->path(), ignored);
  }
}

Status WriteFileAtomically(const std::string& path, std::span<const std::byte> contents) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto file, FileReplacement::Begin(path, 0644));
  LOCKSTEP_RETURN_IF_ERROR(file->Write(contents));
  LOCKSTEP_RETURN_IF_ERROR(file->Sync());
  return file->Replace();
}

Status MakeDirectory(const std::string& path, int mode) {
  std::error_code error;
  const std::filesystem::path above = std::filesystem::path(path).parent_path();
  if (!above.empty()) std::filesystem::create_directories(above, error);
  if (mkdir(path.c_str(), static_cast<mode_t>(mode)) == 0) return OkStatus();
  if (errno == EEXIST && IsDirectory(path)) return OkStatus();
  return FileError(path, "make this directory");
}

bool FileExists(const std::string& path) {
  std::string name;
  if (const FileSource* source = MountOf(path, &name)) return name.empty() || source->Exists(name);
  struct stat info {};
  return stat(path.c_str(), &info) == 0;
}

bool IsDirectory(const std::string& path) {
  std::string name;
  if (MountOf(path, &name) != nullptr) return name.empty();
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

StatusOr<std::vector<std::string>> NamesIn(const std::string& directory, ErrorKind kind) {
  std::string name;
  std::vector<std::string> names;
  if (const FileSource* source = MountOf(directory, &name); source != nullptr && name.empty()) {
    names = source->List();
  } else {
    std::error_code error;
    std::filesystem::directory_iterator entry(directory, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
      names.push_back(entry->path().filename().string());
    if (error) {
      return MakeError(
          kind, absl::StrFormat(
                    "%s: cannot list the directory: %s; name one that is there and may be read",
                    directory, error.message()));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lockstep
