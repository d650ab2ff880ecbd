#include "launcher/files/shard_source.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "collectives/bootstrap.h"
#include "launcher/files/file_server.h"
#include "launcher/probe.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/log.h"
#include "runtime/weights/http_client.h"
#include "runtime/weights/shard_file.h"
#include "runtime/weights/shard_output.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
constexpr uint64_t kMostTextBytes = uint64_t{256} << 20;

Status WriteError(const std::string& path, const char* what) {
  return UsageError("%s: cannot %s: %s", path, what, std::strerror(errno));
}

// The copy of one rank's file.
class ShardCopy {
 public:
  ShardCopy(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}

  // Whether the file is there already. Otherwise what remains is made ready.
  StatusOr<bool> Open(uint64_t settings) {
    LOCKSTEP_ASSIGN_OR_RETURN(header_, ReadShardHeader(from_));
    if (settings != 0 && header_.settings != settings) {
      return ModelError("%s: was made with other settings than the other ranks' files", from_);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(source_, RandomAccessFile::Open(from_, ErrorKind::kModel));
    if (FileExists(to_)) {
      const StatusOr<ShardHeader> there = ReadShardHeader(to_);
      if (there.ok() && there->settings == header_.settings && there->rank == header_.rank)
        return true;
      return UsageError(
          "%s: is of another checkpoint or other settings; give --out a directory of its own, or "
          "delete the files there",
          to_);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const int part, OpenLocked(Part()));
    file_ = UniqueFd(part);
    if (ftruncate(file_.get(), static_cast<off_t>(source_->size_bytes())) != 0)
      return WriteError(Part(), "give its length to");
    return false;
  }

  const std::string& path() const { return to_; }
  bool is_there() const { return !file_.valid(); }
  const ShardHeader& header() const { return header_; }
  uint64_t size_bytes() const { return source_->size_bytes(); }

  // Brings one tensor here. Any thread.
  Status CopyTensor(const ShardTensor& tensor, std::vector<std::byte>* buffer, bool* kept) const {
    LOCKSTEP_ASSIGN_OR_RETURN(*kept, IsThere(tensor, buffer));
    if (*kept) return OkStatus();
    DigestStream digest;
    for (uint64_t done = 0; done < tensor.bytes;) {
      if (Interrupted()) return InterruptedError();
      buffer->resize(std::min(kPieceBytes, tensor.bytes - done));
      LOCKSTEP_RETURN_IF_ERROR(source_->Read(tensor.offset + done, *buffer));
      digest.Add(*buffer);
      LOCKSTEP_RETURN_IF_ERROR(Write(tensor.offset + done, *buffer));
      done += buffer->size();
    }
    if (digest.Value() == tensor.checksum) return OkStatus();
    return ModelError(
        "%s: tensor %s does not match its checksum; the file is damaged there: run lockstep verify "
        "on that machine, or start again",
        from_, tensor.name);
  }

  // All tensors are here: the header, then the name.
  Status Finish() {
    std::string preamble(kShardPreambleBytes, '\0');
    LOCKSTEP_RETURN_IF_ERROR(source_->Read(0, std::as_writable_bytes(std::span(preamble))));
    LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t header_bytes,
                              ShardHeaderBytes(preamble, source_->size_bytes(), from_));
    const uint64_t end = kShardPreambleBytes + header_bytes;
    std::vector<std::byte> buffer;
    for (uint64_t done = 0; done < end; done += buffer.size()) {
      if (Interrupted()) return InterruptedError();
      buffer.resize(std::min(kPieceBytes, end - done));
      LOCKSTEP_RETURN_IF_ERROR(source_->Read(done, buffer));
      LOCKSTEP_RETURN_IF_ERROR(Write(done, buffer));
    }
    const StatusOr<ShardHeader> there = ReadShardHeader(Part());
    LOCKSTEP_RETURN_IF_ERROR(there.status());
    if (there->settings != header_.settings)
      return ModelError("%s: it changed meanwhile; start again", from_);
    if (fsync(file_.get()) != 0) return WriteError(Part(), "write");
    if (rename(Part().c_str(), to_.c_str()) != 0) return WriteError(to_, "rename");
    return OkStatus();
  }

 private:
  std::string Part() const { return to_ + ".part"; }

  StatusOr<bool> IsThere(const ShardTensor& tensor, std::vector<std::byte>* buffer) const {
    // A hole where the tensor begins: nothing was written yet.
    const off_t data = lseek(file_.get(), static_cast<off_t>(tensor.offset), SEEK_DATA);
    if (data < 0 || static_cast<uint64_t>(data) >= tensor.offset + tensor.bytes)
      return tensor.bytes == 0;
    DigestStream digest;
    for (uint64_t done = 0; done < tensor.bytes;) {
      if (Interrupted()) return InterruptedError();
      buffer->resize(std::min(kPieceBytes, tensor.bytes - done));
      const ssize_t got = pread(file_.get(), buffer->data(), buffer->size(),
                                static_cast<off_t>(tensor.offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      digest.Add(std::span(*buffer).first(static_cast<size_t>(got)));
      done += static_cast<uint64_t>(got);
    }
    return digest.Value() == tensor.checksum;
  }

  Status Write(uint64_t offset, std::span<const std::byte> bytes) const {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t wrote = pwrite(file_.get(), bytes.data() + done, bytes.size() - done,
                                   static_cast<off_t>(offset + done));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return WriteError(Part(), "write");
      done += static_cast<size_t>(wrote);
    }
    return OkStatus();
  }

  const std::string from_, to_;
  ShardHeader header_;
  std::unique_ptr<RandomAccessFile> source_;
  UniqueFd file_;
};

Status CopyTensors(const ShardCopy& copy, int threads, ProgressReport* progress) {
  const std::vector<ShardTensor>& tensors = copy.header().tensors;
  std::atomic<size_t> next{0};
  std::mutex mutex;  // over what follows
  Status failed = OkStatus();
  uint64_t done = 0, total = 0;
  size_t there = 0;
  for (const ShardTensor& tensor : tensors) total += tensor.bytes;
  const auto work = [&] {
    std::vector<std::byte> buffer;
    for (size_t i = next++; i < tensors.size(); i = next++) {
      bool kept = false;
      const Status status = copy.CopyTensor(tensors[i], &buffer, &kept);
      const std::lock_guard lock(mutex);
      if (!status.ok()) {
        if (failed.ok()) failed = status;
        next = tensors.size();
        return;
      }
      done += tensors[i].bytes;
      if (kept && tensors[i].bytes > 0) ++there;
      if (progress != nullptr) progress->Update(done, total, NowNs());
    }
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
  }
  if (there > 0)
    log::Info("%d of %d tensors were there from an earlier start", there, tensors.size());
  return failed;
}

// Which ranks' files are to be copied, and of how many.
Status ChooseRanks(const Options& options, const std::string& from, std::vector<int>* chosen,
                   int* ranks) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(from, ErrorKind::kModel));
  const std::vector<int> counts = RankCountsOf(names);
  *ranks = options.ranks > 0 ? static_cast<int>(options.ranks)
                             : (counts.size() == 1 ? counts.front() : 0);
  if (std::find(counts.begin(), counts.end(), *ranks) == counts.end()) {
    return UsageError("--from %s: holds files for %s ranks; say by --ranks which of them", from,
                      RankCountsText(counts));
  }
  if (options.rank >= *ranks) {
    return UsageError("--rank %d: there are ranks 0 to %d", options.rank, *ranks - 1);
  }
  for (int rank = 0; rank < *ranks; ++rank) {
    if (options.rank < 0 || options.rank == rank) chosen->push_back(rank);
  }
  return OkStatus();
}

// The small files beside those of the ranks, and no other files that may stand there.
Status CopyTexts(const std::string& from, const std::string& to) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> there, NamesIn(from, ErrorKind::kModel));
  std::vector<std::string> names(std::begin(kModelTexts), std::end(kModelTexts));
  names.insert(names.end(), {"tokenizer.gguf", kProbeName});
  for (const std::string& name : names) {
    if (!std::binary_search(there.begin(), there.end(), name)) continue;
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text,
                              ReadTextFile(from + "/" + name, kMostTextBytes, ErrorKind::kModel));
    LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(to + "/" + name, std::as_bytes(std::span(text))));
  }
  return OkStatus();
}

// The rest of a file that was opened.
Status CopyFile(ShardCopy* copy, const Options& options, int threads) {
  ProgressReport progress("copying " + std::filesystem::path(copy->path()).filename().string());
  const bool told = options.log_level == "info" || options.log_level == "debug";
  const Status status =
      CopyTensors(*copy, std::min(threads, kRemoteThreads), told ? &progress : nullptr);
  progress.Finish();
  LOCKSTEP_RETURN_IF_ERROR(status);
  LOCKSTEP_RETURN_IF_ERROR(copy->Finish());
  log::Info("%s: %s", copy->path(), FormatBytes(copy->size_bytes()));
  return OkStatus();
}

}  // namespace

bool IsHuggingFace(const std::string& url) {
  const StatusOr<HttpPlace> place = ParseHttpUrl("--from", url);
  return place.ok() && place->scheme == "https" &&
         absl::EqualsIgnoreCase(place->host, "huggingface.co");
}

StatusOr<std::string> HuggingFaceToken(const char* value) {
  const std::string token = value == nullptr ? "" : value;
  // It becomes part of a line of the request's head.
  const bool plain =
      std::all_of(token.begin(), token.end(), [](char c) { return c > 32 && c < 127; });
  if (plain) return token;
  return UsageError(
      "HF_TOKEN holds blanks or characters that no access token has; set it to one alone");
}

StatusOr<std::unique_ptr<ShardSource>> ShardSource::Connect(const Options& options) {
  if (options.from.empty()) return nullptr;
  if (!options.model.empty())
    return UsageError("--model and --from both say what to read; leave one out");
  HttpOptions http;
  http.stop = Interrupted;
  if (!options.secret_file.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string secret, ReadSecretFile(options.secret_file));
    http.token = FileToken(secret);
    http.refused_remedy = "--secret-file holds another secret than the server's";
  } else if (IsHuggingFace(options.from)) {
    LOCKSTEP_ASSIGN_OR_RETURN(http.token, HuggingFaceToken(std::getenv("HF_TOKEN")));
    http.refused_remedy = http.token.empty()
                              ? "set HF_TOKEN to an access token of an account that may read it"
                              : "HF_TOKEN is of an account that may not read it";
  }
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<HttpFiles> files,
                            HttpFiles::Connect(options.from, http));
  return std::unique_ptr<ShardSource>(new ShardSource(std::move(files)));
}

bool ShardSource::holds_shards() const {
  const std::vector<std::string> names = files_->List();
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name.ends_with(kShardSuffix); });
}

void ShardSource::Report() const {
  log::Info("read %s of %s from %s", FormatBytes(files_->bytes_received()),
            FormatBytes(files_->bytes_of_files()), files_->directory());
}

Status CopyShards(const Options& options, const std::string& from, int threads) {
  if (!options.quantize.empty())
    return UsageError("--quantize: %s holds files of ranks, which are copied as they are", from);
  if (!options.shares.empty())
    return UsageError("--shares: %s holds files of ranks, which have theirs", from);
  if (options.record)
    return UsageError("--record: %s holds files of ranks, which bring their probe prompt along",
                      from);
  std::vector<int> chosen;
  int ranks = 0;
  LOCKSTEP_RETURN_IF_ERROR(ChooseRanks(options, from, &chosen, &ranks));
  std::error_code error;
  std::filesystem::create_directories(options.out, error);
  if (error || !IsDirectory(options.out))
    return UsageError("--out %s: cannot make this directory: %s", options.out, error.message());
  // All of them before anything large is read or what is there is touched: their errors come soon.
  std::vector<std::unique_ptr<ShardCopy>> copies;
  for (const int rank : chosen) {
    const std::string name = ShardName(rank, ranks);
    auto copy = std::make_unique<ShardCopy>(from + "/" + name, options.out + "/" + name);
    LOCKSTEP_ASSIGN_OR_RETURN(const bool there,
                              copy->Open(copies.empty() ? 0 : copies.front()->header().settings));
    copies.push_back(std::move(copy));
    if (there) log::Info("%s/%s: is there", options.out, name);
  }
  LOCKSTEP_RETURN_IF_ERROR(CopyTexts(from, options.out));
  for (const std::unique_ptr<ShardCopy>& copy : copies) {
    if (!copy->is_there()) LOCKSTEP_RETURN_IF_ERROR(CopyFile(copy.get(), options, threads));
  }
  return OkStatus();
}

}  // namespace lockstep
