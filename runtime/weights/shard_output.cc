#include "runtime/weights/shard_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

constexpr uint64_t kMostJournalBytes = uint64_t{1} << 30;

Status OutputError(const std::string& path, const char* what) {
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return UsageError(
      "%s: cannot %s: %s%s", path, what, std::strerror(error),
      full ? "; make room and start the same command again, it goes on from here" : "");
}

Status WriteAll(int fd, const std::string& path, uint64_t offset,
                std::span<const std::byte> bytes) {
  constexpr size_t kMostAtOnce = size_t{64} << 20;
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t wrote =
        pwrite(fd, bytes.data() + done, std::min(bytes.size() - done, kMostAtOnce),
               static_cast<off_t>(offset + done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return OutputError(path, "write");
    done += static_cast<size_t>(wrote);
  }
  return OkStatus();
}

// A line that can be told from one that was cut short.
std::string Sealed(const std::string& line) {
  return line + absl::StrFormat(" %016x\n", DigestOf(line.data(), line.size()));
}

}  // namespace

ShardOutput::ShardOutput(std::string directory, std::vector<ShardHeader>* headers,
                         std::vector<uint64_t> sizes, std::vector<std::vector<size_t>> places,
                         Pace pace)
    : directory_(std::move(directory)),
      headers_(*headers),
      sizes_(std::move(sizes)),
      places_(std::move(places)),
      pace_(pace),
      files_(sizes_.size(), -1),
      done_(places_.size(), false) {}

ShardOutput::~ShardOutput() {
  for (const int fd : files_) {
    if (fd >= 0) (void)close(fd);
  }
  if (journal_ >= 0) (void)close(journal_);
}

std::string ShardOutput::FinalPath(size_t rank) const {
  return directory_ + "/" + ShardName(headers_[rank].rank, headers_[rank].ranks());
}

// Ranks that are made one by one need not wait for each other.
std::string ShardOutput::JournalPath() const {
  if (headers_.size() == headers_[0].shares.size()) return directory_ + "/shard.journal";
  return absl::StrFormat("%s/shard-rank-%d.journal", directory_, headers_[0].rank);
}

std::string ShardOutput::JournalTitle() const {
  return Sealed(absl::StrFormat("lockstep shard %016x", headers_[0].settings));
}

bool ShardOutput::IsFinished(size_t rank) const {
  if (!FileExists(FinalPath(rank))) return false;
  const StatusOr<ShardHeader> header = ReadShardHeader(FinalPath(rank));
  return header.ok() && header->settings == headers_[rank].settings &&
         header->rank == headers_[rank].rank;
}

// Files of another sharding beside these would be taken for each other's.
Status ShardOutput::CheckOthers() const {
  std::error_code error;
  std::filesystem::directory_iterator entry(directory_, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string path = entry->path().string();
    if (!path.ends_with(kShardSuffix)) continue;
    const StatusOr<ShardHeader> header = ReadShardHeader(path);
    const bool mine = header.ok() && header->settings == headers_[0].settings &&
                      entry->path().filename() == ShardName(header->rank, header->ranks());
    if (!mine) {
      return UsageError(
          "%s: is of another checkpoint or other settings; give --out a directory of its own, or "
          "delete the files there",
          path);
    }
  }
  if (error) return UsageError("%s: cannot list the directory: %s", directory_, error.message());
  return OkStatus();
}

size_t ShardOutput::ReadJournal(const std::string& text) {
  const std::string title = JournalTitle();
  if (text.compare(0, title.size(), title) != 0) return 0;
  size_t valid = title.size();
  while (true) {
    const size_t end = text.find('\n', valid);
    if (end == std::string::npos || end - valid < 18) return valid;
    const std::string line = text.substr(valid, end - valid - 17);
    if (Sealed(line) != text.substr(valid, end + 1 - valid)) return valid;
    std::istringstream words(line);
    size_t task = 0;
    words >> task >> std::hex;
    if (!words || task >= places_.size()) return valid;
    for (size_t rank = 0; rank < headers_.size(); ++rank)
      words >> headers_[rank].tensors[places_[task][rank]].checksum;
    if (!words) return valid;
    done_[task] = true;
    valid = end + 1;
  }
}

// A rank's file is its .part, of the right length, or, if names were being given when the earlier
// start ended, already whole.
Status ShardOutput::OpenParts(bool keep) {
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    const std::string path = PartPath(rank);
    if (keep && !FileExists(path)) continue;
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | (keep ? 0 : O_TRUNC);
    files_[rank] = open(path.c_str(), flags, 0644);
    if (files_[rank] < 0) return OutputError(path, "create");
    if (ftruncate(files_[rank], static_cast<off_t>(sizes_[rank])) != 0)
      return OutputError(path, "give its length to");
  }
  return OkStatus();
}

Status ShardOutput::OpenJournal() {
  const std::string path = JournalPath();
  journal_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (journal_ < 0) return OutputError(path, "open");
  if (flock(journal_, LOCK_EX | LOCK_NB) == 0) return OkStatus();
  return UsageError("%s: another lockstep shard is writing to this directory; wait for it", path);
}

Status ShardOutput::CheckSpace() const {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(directory_, error);
  if (error) return OkStatus();  // then writing will tell
  uint64_t needed = 0;
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    struct stat info {};
    if (files_[rank] < 0 || fstat(files_[rank], &info) != 0) continue;
    const auto there = static_cast<uint64_t>(info.st_blocks) * 512;
    needed += sizes_[rank] > there ? sizes_[rank] - there : 0;
  }
  if (needed <= space.available) return OkStatus();
  return UsageError("--out %s: needs %d more MB, but its disk has %d left; make room", directory_,
                    needed / 1'000'000 + 1, space.available / 1'000'000);
}

Status ShardOutput::Open() {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error || !IsDirectory(directory_))
    return UsageError("--out %s: cannot make this directory: %s", directory_, error.message());
  LOCKSTEP_RETURN_IF_ERROR(CheckOthers());
  LOCKSTEP_RETURN_IF_ERROR(OpenJournal());
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(JournalPath(), kMostJournalBytes));
  size_t finished = 0;
  bool keep = true;
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    const bool whole = IsFinished(rank);
    finished += whole ? 1 : 0;
    std::error_code missing;
    keep = keep && (whole || std::filesystem::file_size(PartPath(rank), missing) == sizes_[rank]);
  }
  if (finished == files_.size()) {
    complete_ = true;
    std::filesystem::remove(JournalPath(), error);
    return OkStatus();
  }
  size_t valid = keep ? ReadJournal(text) : 0;
  LOCKSTEP_RETURN_IF_ERROR(OpenParts(valid > 0));
  LOCKSTEP_RETURN_IF_ERROR(CheckSpace());
  const std::string title = JournalTitle();
  if (ftruncate(journal_, static_cast<off_t>(valid)) != 0) return OutputError(JournalPath(), "cut");
  if (lseek(journal_, static_cast<off_t>(valid), SEEK_SET) < 0)
    return OutputError(JournalPath(), "seek in");
  synced_ns_ = NowNs();
  if (valid > 0) return OkStatus();
  pending_ = title;
  return Sync();
}

Status ShardOutput::Write(size_t rank, uint64_t offset, std::span<const std::byte> bytes) {
  // A rank whose file is whole: what is written again is the same.
  if (files_[rank] < 0) return OkStatus();
  return WriteAll(files_[rank], PartPath(rank), offset, bytes);
}

Status ShardOutput::Done(size_t task, const std::vector<uint64_t>& checksums) {
  const std::lock_guard lock(mutex_);
  std::string line = std::to_string(task);
  for (size_t rank = 0; rank < headers_.size(); ++rank) {
    ShardTensor& tensor = headers_[rank].tensors[places_[task][rank]];
    tensor.checksum = checksums[rank];
    pending_bytes_ += tensor.bytes;
    line += absl::StrFormat(" %016x", checksums[rank]);
  }
  pending_ += Sealed(line);
  const bool due = pending_bytes_ >= pace_.bytes || NowNs() - synced_ns_ >= pace_.ms * 1'000'000;
  return due ? SyncLocked() : OkStatus();
}

Status ShardOutput::Sync() {
  const std::lock_guard lock(mutex_);
  return SyncLocked();
}

// The data first: what the journal names must be on the disk even if the power fails.
Status ShardOutput::SyncLocked() {
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    if (files_[rank] >= 0 && fsync(files_[rank]) != 0) return OutputError(PartPath(rank), "write");
  }
  for (size_t done = 0; done < pending_.size();) {
    const ssize_t wrote = write(journal_, pending_.data() + done, pending_.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return OutputError(JournalPath(), "write");
    done += static_cast<size_t>(wrote);
  }
  if (fsync(journal_) != 0) return OutputError(JournalPath(), "write");
  pending_.clear();
  pending_bytes_ = 0;
  synced_ns_ = NowNs();
  return OkStatus();
}

Status ShardOutput::Finish() {
  LOCKSTEP_RETURN_IF_ERROR(Sync());
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    if (files_[rank] < 0) continue;
    const std::string beginning = ShardBeginning(headers_[rank]);
    LOCKSTEP_RETURN_IF_ERROR(Write(rank, 0, std::as_bytes(std::span(beginning))));
    if (fsync(files_[rank]) != 0) return OutputError(PartPath(rank), "write");
  }
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    if (files_[rank] < 0) continue;
    if (rename(PartPath(rank).c_str(), FinalPath(rank).c_str()) != 0)
      return OutputError(PartPath(rank), "rename");
  }
  if (unlink(JournalPath().c_str()) != 0) return OutputError(JournalPath(), "remove");
  return OkStatus();
}

}  // namespace lockstep
