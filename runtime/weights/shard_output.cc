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
      journals_(sizes_.size(), -1),
      done_(places_.size(), false),
      pending_(sizes_.size()) {}

ShardOutput::~ShardOutput() {
  for (const std::vector<int>* files : {&files_, &journals_}) {
    for (const int fd : *files) {
      if (fd >= 0) (void)close(fd);
    }
  }
}

std::string ShardOutput::FinalPath(size_t rank) const {
  return directory_ + "/" + ShardName(headers_[rank].rank, headers_[rank].ranks());
}

// One for each rank's file, whoever writes it: a start for all ranks and one for a single rank find
// the same, so that neither believes what the other threw away. Without the number of ranks: two
// numbers at once would leave files of both.
std::string ShardOutput::JournalPath(size_t rank) const {
  return absl::StrFormat("%s/shard-rank-%d.journal", directory_, headers_[rank].rank);
}

std::string ShardOutput::JournalTitle(size_t rank) const {
  return Sealed(
      absl::StrFormat("lockstep shard %016x of %d", headers_[rank].settings, headers_[rank].rank));
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

size_t ShardOutput::ReadJournal(const std::string& text, size_t rank, std::vector<bool>* done) {
  const std::string title = JournalTitle(rank);
  if (text.compare(0, title.size(), title) != 0) return 0;
  size_t valid = title.size();
  while (true) {
    const size_t end = text.find('\n', valid);
    if (end == std::string::npos || end - valid < 18) return valid;
    const std::string line = text.substr(valid, end - valid - 17);
    if (Sealed(line) != text.substr(valid, end + 1 - valid)) return valid;
    std::istringstream words(line);
    size_t task = 0;
    uint64_t checksum = 0;
    words >> task >> std::hex >> checksum;
    if (!words || task >= places_.size()) return valid;
    headers_[rank].tensors[places_[task][rank]].checksum = checksum;
    (*done)[task] = true;
    valid = end + 1;
  }
}

// A file that was renamed or removed between its opening and its lock is not the one that has the
// name now, and its lock excludes nobody.
StatusOr<int> OpenLocked(const std::string& path) {
  while (true) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return OutputError(path, "open");
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      (void)close(fd);
      return UsageError("%s: another lockstep shard is writing this rank's file; wait for it",
                        path);
    }
    struct stat mine {
    }, named{};
    if (fstat(fd, &mine) == 0 && stat(path.c_str(), &named) == 0 && mine.st_ino == named.st_ino &&
        mine.st_dev == named.st_dev) {
      return fd;
    }
    (void)close(fd);
  }
}

// The journal first: of those who write files anew, whoever holds it is the only one to touch the
// rank's .part.
Status ShardOutput::LockJournal(size_t rank) {
  LOCKSTEP_ASSIGN_OR_RETURN(journals_[rank], OpenLocked(JournalPath(rank)));
  return OkStatus();
}

// What an earlier start left of a rank is believed if its .part has the right length and its
// journal these settings.
Status ShardOutput::OpenRank(size_t rank) {
  const std::string path = PartPath(rank), journal = JournalPath(rank);
  // A copy of a ready file (launcher/files/shard_source.cc) has no journal, but this lock.
  LOCKSTEP_ASSIGN_OR_RETURN(files_[rank], OpenLocked(path));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(journal, kMostJournalBytes));
  std::error_code missing;
  const bool there = std::filesystem::file_size(path, missing) == sizes_[rank] && !missing;
  std::vector<bool> done(done_.size(), false);
  const size_t valid = there ? ReadJournal(text, rank, &done) : 0;
  for (size_t task = 0; task < done_.size(); ++task) done_[task] = done_[task] && done[task];
  // The journal is cut before the data that it speaks of goes.
  if (ftruncate(journals_[rank], static_cast<off_t>(valid)) != 0 || fsync(journals_[rank]) != 0)
    return OutputError(journal, "cut");
  if (lseek(journals_[rank], static_cast<off_t>(valid), SEEK_SET) < 0)
    return OutputError(journal, "seek in");
  if (valid == 0 && ftruncate(files_[rank], 0) != 0) return OutputError(path, "empty");
  if (ftruncate(files_[rank], static_cast<off_t>(sizes_[rank])) != 0)
    return OutputError(path, "give its length to");
  if (valid == 0) pending_[rank] = JournalTitle(rank);
  return OkStatus();
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
  for (size_t rank = 0; rank < files_.size(); ++rank) LOCKSTEP_RETURN_IF_ERROR(LockJournal(rank));
  done_.assign(done_.size(), true);
  size_t finished = 0;
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    if (IsFinished(rank)) {
      ++finished;  // needs neither a .part nor what its journal says
    } else {
      LOCKSTEP_RETURN_IF_ERROR(OpenRank(rank));
    }
  }
  complete_ = finished == files_.size();
  if (complete_) {
    for (size_t rank = 0; rank < files_.size(); ++rank)
      std::filesystem::remove(JournalPath(rank), error);
    return OkStatus();
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckSpace());
  return Sync();
}

Status ShardOutput::Write(size_t rank, uint64_t offset, std::span<const std::byte> bytes) {
  // A rank whose file is whole: what is written again is the same.
  if (files_[rank] < 0) return OkStatus();
  return WriteAll(files_[rank], PartPath(rank), offset, bytes);
}

Status ShardOutput::Done(size_t task, const std::vector<uint64_t>& checksums) {
  const std::lock_guard lock(mutex_);
  for (size_t rank = 0; rank < headers_.size(); ++rank) {
    ShardTensor& tensor = headers_[rank].tensors[places_[task][rank]];
    tensor.checksum = checksums[rank];
    pending_bytes_ += tensor.bytes;
    if (files_[rank] >= 0)
      pending_[rank] += Sealed(absl::StrFormat("%d %016x", task, checksums[rank]));
  }
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
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    if (pending_[rank].empty()) continue;
    const std::string path = JournalPath(rank);
    for (size_t done = 0; done < pending_[rank].size();) {
      const ssize_t wrote =
          write(journals_[rank], pending_[rank].data() + done, pending_[rank].size() - done);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return OutputError(path, "write");
      done += static_cast<size_t>(wrote);
    }
    if (fsync(journals_[rank]) != 0) return OutputError(path, "write");
    pending_[rank].clear();
  }
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
  for (size_t rank = 0; rank < files_.size(); ++rank) {
    const std::string path = JournalPath(rank);
    if (unlink(path.c_str()) != 0) return OutputError(path, "remove");
  }
  return OkStatus();
}

}  // namespace lockstep
