#include "runtime/weights/http_files.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "nlohmann/json.hpp"
#include "runtime/weights/bounded_json.h"
#include "runtime/weights/safetensors.h"

namespace lockstep {
namespace {

using nlohmann::json;

// The first request for a file, so that a header comes with it.
constexpr uint64_t kFirstBytes = uint64_t{1} << 20;
constexpr size_t kMostBlocks = 128;
constexpr uint64_t kMostListBytes = uint64_t{16} << 20;
// Ranges that lie close together are read as one up to this length.
constexpr uint64_t kMostMergedBytes = uint64_t{8} << 20;

// A name as it stands in a URL.
std::string Escaped(const std::string& name) {
  std::string text;
  for (const char c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '.' || c == '_' || c == '~' || c == '+';
    text += plain ? std::string(1, c)
                  : absl::StrFormat("%%%02X", static_cast<int>(static_cast<unsigned char>(c)));
  }
  return text;
}

std::string Unescaped(const std::string& text) {
  std::string name;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) {
      return at < text.size()
                 ? std::string("0123456789abcdef")
                       .find(static_cast<char>(text[at] >= 'A' && text[at] <= 'F' ? text[at] + 32
                                                                                  : text[at]))
                 : std::string::npos;
    };
    if (text[i] == '%' && digit(i + 1) < 16 && digit(i + 2) < 16) {
      name += static_cast<char>(digit(i + 1) * 16 + digit(i + 2));
      i += 2;
    } else {
      name += text[i];
    }
  }
  return name;
}

// Parts that are read by one request.
struct Run {
  uint64_t begin = 0, end = 0;
  std::vector<FilePart> parts;
};

std::vector<Run> MergeParts(std::span<const FilePart> parts) {
  std::vector<FilePart> sorted(parts.begin(), parts.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const FilePart& a, const FilePart& b) { return a.offset < b.offset; });
  std::vector<Run> runs;
  for (const FilePart& part : sorted) {
    if (part.out.empty()) continue;
    const uint64_t end = part.offset + part.out.size();
    if (!runs.empty() && part.offset < runs.back().end + kHttpGapBytes &&
        end - runs.back().begin <= kMostMergedBytes) {
      runs.back().end = std::max(runs.back().end, end);
      runs.back().parts.push_back(part);
    } else {
      runs.push_back({part.offset, end, {part}});
    }
  }
  return runs;
}

}  // namespace

// What is known of a file.
struct HttpFiles::Remote {
  bool absent = false;
  HttpTarget target;
};

class HttpFile final : public RandomAccessFile {
 public:
  HttpFile(const HttpFiles& files, HttpFiles::Remote* remote)
      : RandomAccessFile(remote->target.name, remote->target.size_bytes),
        files_(files),
        remote_(remote) {}

  Status Read(uint64_t offset, std::span<std::byte> out) const override {
    LOCKSTEP_RETURN_IF_ERROR(CheckInside(offset, out.size()));
    return files_.Read(remote_, offset, out);
  }
  Status ReadParts(std::span<const FilePart> parts) const override {
    for (const FilePart& part : parts)
      LOCKSTEP_RETURN_IF_ERROR(CheckInside(part.offset, part.out.size()));
    return files_.ReadParts(remote_, parts);
  }
  bool reads_strided() const override { return remote_->target.strided; }
  Status ReadStrided(const StridedRange& range, std::span<std::byte> out) const override {
    if (!reads_strided()) return RandomAccessFile::ReadStrided(range, out);
    if (range.count == 0 || range.bytes == 0) return OkStatus();
    const uint64_t all = (range.count - 1) * range.stride + range.bytes;
    LOCKSTEP_RETURN_IF_ERROR(CheckInside(range.offset, all));
    // Of what lies so close together others want the neighbours, and the block is kept.
    if (all < kHttpSmallBytes) return RandomAccessFile::ReadStrided(range, out);
    return files_.client_.ReadStrided(&remote_->target, range, out);
  }

 private:
  Status CheckInside(uint64_t offset, uint64_t bytes) const {
    if (offset <= size_bytes() && bytes <= size_bytes() - offset) return OkStatus();
    return ModelError("%s: ends at byte %d, expected at least %d; the file was cut, fetch it again",
                      path(), size_bytes(), offset + bytes);
  }

  const HttpFiles& files_;
  HttpFiles::Remote* remote_;
};

HttpFiles::HttpFiles(HttpPlace place, const HttpOptions& options)
    : place_(std::move(place)), client_(options) {}

HttpFiles::~HttpFiles() = default;

StatusOr<std::unique_ptr<HttpFiles>> HttpFiles::Connect(const std::string& url,
                                                        const HttpOptions& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(HttpPlace place, ParseHttpUrl("--from", url));
  auto files = std::unique_ptr<HttpFiles>(new HttpFiles(std::move(place), options));
  LOCKSTEP_RETURN_IF_ERROR(files->Discover());
  return files;
}

std::string HttpFiles::model() const {
  return place_.file.empty() ? place_.directory : place_.directory + "/" + Unescaped(place_.file);
}

Status HttpFiles::Discover() {
  if (!place_.file.empty()) {
    const std::string name = Unescaped(place_.file);
    if (!IsPlainFileName(name)) return UsageError("--from: '%s' is no file's name", name);
    LOCKSTEP_ASSIGN_OR_RETURN(const Remote* remote, Find(name));
    if (remote == nullptr)
      return ModelError("%s/%s: there is no such file", place_.directory, name);
    names_ = {name};
    return OkStatus();
  }
  HttpTarget list;
  list.name = place_.directory + "/";
  list.url = place_.directory + "/" + place_.query;
  std::vector<std::byte> text(kMostListBytes);
  bool lasting = false;
  const StatusOr<HttpClient::Beginning> answer = client_.Begin(&list, text, false, &lasting);
  // A server that cannot be reached, or is in trouble, may have a list all the same.
  if (!answer.ok() && (!lasting || KindOf(answer.status()) == ErrorKind::kInterrupted))
    return answer.status();
  // Any other answer than the list is one of a server that has none; whether it lets us in, the
  // next request says.
  if (answer.ok() && !answer->absent && answer->media_type == "application/json" &&
      answer->bytes == list.size_bytes) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        listed_, TakeList({reinterpret_cast<const char*>(text.data()), answer->bytes}));
    if (listed_) return OkStatus();
  }
  text = {};
  return AskForIndex();
}

// {"lockstep": "files", "files": [{"name": ..., "bytes": ...}, ...]}; false if it is another JSON.
StatusOr<bool> HttpFiles::TakeList(const std::string& text) {
  const json root = ParseBoundedJson(text, 4);
  if (!root.is_object() || root.value("lockstep", json()) != "files" || !root.contains("files") ||
      !root["files"].is_array()) {
    return false;
  }
  for (const json& entry : root["files"]) {
    const json name = entry.is_object() ? entry.value("name", json()) : json();
    if (!name.is_string() || !IsPlainFileName(name.get<std::string>()))
      return ModelError("%s/: lists something that is no file's name", place_.directory);
    names_.push_back(name.get<std::string>());
  }
  patient_ = true;
  return true;
}

// A server without a list: the index of the weights names their files.
Status HttpFiles::AskForIndex() {
  LOCKSTEP_ASSIGN_OR_RETURN(const Remote* index, Find(kSafetensorsIndex));
  if (index != nullptr) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Text(kSafetensorsIndex));
    LOCKSTEP_ASSIGN_OR_RETURN(
        const auto files, ParseSafetensorsIndex(text, place_.directory + "/" + kSafetensorsIndex));
    for (const auto& [tensor, file] : files) names_.push_back(file);
  }
  // Some copies keep the draft layer in a file outside the index.
  std::vector<std::string> others = {"mtp.safetensors"};
  if (index == nullptr) others.insert(others.begin(), "model.safetensors");
  for (const std::string& name : others) {
    LOCKSTEP_ASSIGN_OR_RETURN(const Remote* remote, Find(name));
    if (remote != nullptr) names_.push_back(name);
  }
  std::sort(names_.begin(), names_.end());
  names_.erase(std::unique(names_.begin(), names_.end()), names_.end());
  if (!names_.empty()) return OkStatus();
  return ModelError(
      "%s: no list of files as lockstep files gives it, no %s and no model.safetensors; give the "
      "URL of such a directory (of Hugging Face https://huggingface.co/OWNER/NAME/resolve/main) or "
      "of a .gguf file",
      place_.directory, kSafetensorsIndex);
}

StatusOr<HttpFiles::Remote*> HttpFiles::Find(const std::string& name) const {
  const std::lock_guard finding(finding_);
  {
    const std::lock_guard lock(mutex_);
    const auto known = remotes_.find(name);
    if (known != remotes_.end()) return known->second->absent ? nullptr : known->second.get();
  }
  auto remote = std::make_unique<Remote>();
  remote->target.name = place_.directory + "/" + name;
  remote->target.url = place_.directory + "/" + Escaped(name) + place_.query;
  if (listed_ && std::find(names_.begin(), names_.end(), name) == names_.end()) {
    remote->absent = true;
  } else {
    std::vector<std::byte> first(kFirstBytes);
    LOCKSTEP_ASSIGN_OR_RETURN(const HttpClient::Beginning beginning,
                              client_.Begin(&remote->target, first, patient_));
    patient_ = true;
    remote->absent = beginning.absent;
    KeepBlocks(remote.get(), 0, std::span(first).first(beginning.bytes));
  }
  const std::lock_guard lock(mutex_);
  Remote* const found = (remotes_[name] = std::move(remote)).get();
  return found->absent ? nullptr : found;
}

StatusOr<std::unique_ptr<RandomAccessFile>> HttpFiles::Open(const std::string& name) const {
  LOCKSTEP_ASSIGN_OR_RETURN(Remote * remote, Find(name));
  if (remote == nullptr) return ModelError("%s/%s: is not there", place_.directory, name);
  return std::make_unique<HttpFile>(*this, remote);
}

bool HttpFiles::Exists(const std::string& name) const {
  const StatusOr<Remote*> remote = Find(name);
  return !remote.ok() || *remote != nullptr;
}

std::vector<std::string> HttpFiles::List() const { return names_; }

uint64_t HttpFiles::bytes_of_files() const {
  const std::lock_guard lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [name, remote] : remotes_) bytes += remote->target.size_bytes;
  return bytes;
}

StatusOr<std::string> HttpFiles::Text(const std::string& name) const {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto file, Open(name));
  if (file->size_bytes() > kMostIndexBytes)
    return ModelError("%s: %d bytes, too many for such a file", file->path(), file->size_bytes());
  std::string text(file->size_bytes(), '\0');
  LOCKSTEP_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

HttpFiles::Block HttpFiles::CachedBlock(const Remote* remote, uint64_t number) const {
  const std::lock_guard lock(blocks_mutex_);
  const auto found = blocks_.find({remote, number});
  return found == blocks_.end() ? nullptr : found->second;
}

// `offset` is at the beginning of a block; the last block may be the file's last, shorter one.
void HttpFiles::KeepBlocks(const Remote* remote, uint64_t offset,
                           std::span<const std::byte> bytes) const {
  const std::lock_guard lock(blocks_mutex_);
  for (uint64_t done = 0; done < bytes.size(); done += kHttpBlockBytes) {
    const auto piece = bytes.subspan(done, std::min(kHttpBlockBytes, bytes.size() - done));
    const BlockKey key{remote, (offset + done) / kHttpBlockBytes};
    auto block = std::make_shared<const std::vector<std::byte>>(piece.begin(), piece.end());
    if (blocks_.insert_or_assign(key, std::move(block)).second) oldest_first_.push_back(key);
    if (oldest_first_.size() > kMostBlocks) {
      blocks_.erase(oldest_first_.front());
      oldest_first_.pop_front();
    }
  }
}

bool HttpFiles::ReadCached(const Remote* remote, uint64_t offset, std::span<std::byte> out) const {
  if (out.size() > kMostBlocks / 4 * kHttpBlockBytes) return false;
  const uint64_t first = offset / kHttpBlockBytes;
  const uint64_t last = (offset + out.size() - 1) / kHttpBlockBytes;
  std::vector<Block> blocks;
  for (uint64_t number = first; number <= last; ++number) {
    blocks.push_back(CachedBlock(remote, number));
    if (blocks.back() == nullptr) return false;
  }
  for (size_t done = 0; done < out.size();) {
    const uint64_t at = offset + done;
    const std::vector<std::byte>& block = *blocks[at / kHttpBlockBytes - first];
    const uint64_t within = at % kHttpBlockBytes;
    if (within >= block.size()) return false;  // the beginning was read to its middle only
    const size_t bytes = std::min<uint64_t>(out.size() - done, block.size() - within);
    std::memcpy(out.data() + done, block.data() + within, bytes);
    done += bytes;
  }
  return true;
}

Status HttpFiles::Read(Remote* remote, uint64_t offset, std::span<std::byte> out) const {
  if (out.empty() || ReadCached(remote, offset, out)) return OkStatus();
  if (out.size() >= kHttpSmallBytes) return client_.Read(&remote->target, offset, out);
  // One block or two, of which one may be there.
  uint64_t first = offset / kHttpBlockBytes;
  uint64_t last = (offset + out.size() - 1) / kHttpBlockBytes;
  if (first < last && CachedBlock(remote, first) != nullptr) ++first;
  if (first < last && CachedBlock(remote, last) != nullptr) --last;
  const uint64_t begin = first * kHttpBlockBytes;
  const uint64_t end = std::min(remote->target.size_bytes, (last + 1) * kHttpBlockBytes);
  std::vector<std::byte> bytes(end - begin);
  LOCKSTEP_RETURN_IF_ERROR(client_.Read(&remote->target, begin, bytes));
  KeepBlocks(remote, begin, bytes);
  if (ReadCached(remote, offset, out)) return OkStatus();
  return client_.Read(&remote->target, offset, out);  // others needed the room meanwhile
}

Status HttpFiles::ReadParts(Remote* remote, std::span<const FilePart> parts) const {
  const std::vector<Run> runs = MergeParts(parts);
  std::atomic<size_t> next{0};
  std::mutex failed_mutex;
  Status failed = OkStatus();
  const auto work = [&] {
    std::vector<std::byte> buffer;
    for (size_t i = next++; i < runs.size(); i = next++) {
      const Run& run = runs[i];
      const bool direct = run.parts.size() == 1;
      if (!direct) buffer.resize(run.end - run.begin);
      const std::span<std::byte> to = direct ? run.parts[0].out : std::span(buffer);
      const Status status = ReadCached(remote, run.begin, to)
                                ? OkStatus()
                                : client_.Read(&remote->target, run.begin, to);
      if (!status.ok()) {
        const std::lock_guard lock(failed_mutex);
        if (failed.ok()) failed = status;
        next = runs.size();
        return;
      }
      for (const FilePart& part : run.parts) {
        if (!direct)
          std::memcpy(part.out.data(), buffer.data() + (part.offset - run.begin), part.out.size());
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    const auto most = static_cast<size_t>(client_.options().connections);
    for (size_t i = 1; i < std::min(runs.size(), most); ++i) threads.emplace_back(work);
    work();
  }
  return failed;
}

}  // namespace lockstep
