#include "launcher/files/file_server.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "collectives/secret.h"
#include "launcher/file_range.h"
#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/http/server.h"
#include "runtime/weights/http_answer.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr size_t kChunkBytes = size_t{256} << 10;
constexpr char kJson[] = "application/json";

// Regular files only, whatever the name leads to. O_NONBLOCK: a pipe must not hold us.
UniqueFd OpenRegular(const std::string& path, struct stat* info) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.valid() && (fstat(fd.get(), info) != 0 || !S_ISREG(info->st_mode))) return UniqueFd();
  return fd;
}

// Changes when the file does.
std::string EtagOf(const struct stat& info) {
  return absl::StrFormat(
      "\"%x-%x-%x.%x\"", static_cast<uint64_t>(info.st_ino), static_cast<uint64_t>(info.st_size),
      static_cast<uint64_t>(info.st_mtim.tv_sec), static_cast<uint64_t>(info.st_mtim.tv_nsec));
}

// Whether a file of this name belongs to a model.
bool IsOfModel(std::string_view name) {
  static constexpr std::string_view kNames[] = {"config.json",
                                                "generation_config.json",
                                                "tokenizer.json",
                                                "tokenizer_config.json",
                                                "special_tokens_map.json",
                                                "chat_template.jinja",
                                                "probe.json",
                                                "hf_quant_config.json",
                                                "chat_template.json"};
  static constexpr std::string_view kSuffixes[] = {".safetensors", ".safetensors.index.json",
                                                   ".gguf", ".lockstep"};
  if (name.empty() || name[0] == '.') return false;
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         std::any_of(std::begin(kSuffixes), std::end(kSuffixes),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

bool HasServedCharacters(std::string_view name) {
  return name.size() <= 255 && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '-' || c == '_' || c == '+';
         });
}

// Whether a range's digest can go before it: the client hears nothing until it is read.
bool IsSoonRead(const StridedRange& range) {
  return range.total() <= kMostDigestBytes && range.count <= kMostDigestPieces &&
         (range.count <= 1 || range.stride <= kMostDigestSpan / range.count);
}

std::unique_ptr<HttpReply> ErrorReply(int status, std::string_view what) {
  std::vector<HttpField> more;
  if (status == 401) more.push_back({"WWW-Authenticate", "Bearer"});
  return HttpText(status, "text/plain", std::string(what) + "\n", std::move(more));
}

// Pieces of a file, and before them their digest where it is wanted.
class FileReply final : public HttpReply {
 public:
  FileReply(UniqueFd file, HttpHead head, const StridedRange& pieces, bool with_digest,
            std::function<void()> wake, std::atomic<uint64_t>* bytes_sent)
      : file_(std::move(file)),
        head_(std::move(head)),
        left_(pieces),
        wake_(std::move(wake)),
        bytes_sent_(bytes_sent) {
    if (!with_digest || left_.done()) return;
    unread_ = left_;
    digest_.emplace();
  }

  // A chunk of the digest at each call, so that other clients have their turns.
  std::optional<HttpHead> Head() override {
    if (!digest_.has_value()) return head_;
    const size_t got = Read(unread_);
    // Without a digest: Next fails in the same place, and the client sees how far it came.
    if (got == 0) return head_;
    digest_->Add(std::span(chunk_).first(got));
    if (!unread_.done()) {
      wake_();
      return std::nullopt;
    }
    head_.fields.push_back({kDigestHeader, absl::StrFormat("%016x", digest_->Value())});
    return head_;
  }

  HttpPart Next() override {
    if (left_.done()) return {.last = true};
    const size_t got = Read(left_);
    // The head has promised more: only a cut connection tells the client.
    if (got == 0) return {.failed = true};
    bytes_sent_->fetch_add(got);
    return {{reinterpret_cast<const char*>(chunk_.data()), got}, left_.done()};
  }

 private:
  size_t Read(PieceReader& reader) {
    chunk_.resize(kChunkBytes);
    return reader.Read(file_.get(), chunk_);
  }

  UniqueFd file_;
  HttpHead head_;
  PieceReader left_;    // to be sent
  PieceReader unread_;  // of the same, to be added to the digest
  std::optional<DigestStream> digest_;
  std::vector<std::byte> chunk_;
  std::function<void()> wake_;
  std::atomic<uint64_t>* bytes_sent_;
};

class HttpFileServer final : public FileServer {
 public:
  explicit HttpFileServer(const FileServerOptions& options)
      : options_(options), token_(FileToken(options.secret)) {}

  Status Bind() {
    HttpServerOptions http;
    http.host = options_.host;
    http.port = options_.port;
    http.most_connections = options_.most_connections;
    http.request_ms = options_.request_ms;
    http.idle_ms = options_.idle_ms;
    http.part_ms = options_.piece_ms;
    http.threads = options_.threads;
    StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Listen(http);
    if (!server.ok()) {
      return Annotate(server.status(),
                      absl::StrFormat("--host %s --port %d", options_.host, options_.port));
    }
    if (options_.secret.empty() && !(*server)->on_loopback()) {
      return UsageError(
          "--host %s can be reached from other machines: make a secret with `umask 077; openssl "
          "rand -hex 32 > FILE`, and give --secret-file FILE here and to lockstep shard --from",
          options_.host);
    }
    server_ = std::move(*server);
    return OkStatus();
  }

  void Serve(std::map<std::string, std::string> texts) override {
    texts_ = std::move(texts);
    server_->Serve({
        .refuse = [this](const HttpCall& request) { return Refusal(request); },
        .answer = [this](HttpCall request,
                         std::function<void()> wake) { return Answer(request, std::move(wake)); },
        .malformed = [](const HttpCall&, int status,
                        std::string_view what) { return ErrorReply(status, what); },
    });
  }

  int port() const override { return server_->port(); }
  uint64_t bytes_sent() const override { return bytes_sent_; }
  uint64_t requests() const override { return requests_; }

 private:
  bool IsAllowed(const HttpCall& request) const {
    if (options_.secret.empty()) return IsLoopbackName(request.Field("Host"));
    constexpr std::string_view kScheme = "Bearer ";
    std::string_view given = request.Field("Authorization");
    if (!given.starts_with(kScheme)) return false;
    given.remove_prefix(kScheme.size());
    // Digests of both: comparing them takes the same time whatever was sent.
    constexpr std::string_view kKey = "lockstep compare";
    return EqualProofs(HmacSha256(kKey, std::as_bytes(std::span(given))),
                       HmacSha256(kKey, std::as_bytes(std::span(token_))));
  }

  // Who was refused, or sent what has no use here, begins anew.
  std::unique_ptr<HttpReply> Refusal(const HttpCall& request) const {
    if (!IsAllowed(request)) {
      return options_.secret.empty() ? ErrorReply(403, "this server answers to localhost only")
                                     : ErrorReply(401, "the cluster's secret is needed");
    }
    if (request.method != "GET" && request.method != "HEAD")
      return ErrorReply(405, "GET and HEAD only");
    return nullptr;
  }

  std::unique_ptr<HttpReply> Answer(const HttpCall& request, std::function<void()> wake) {
    requests_.fetch_add(1);
    if (request.target == "/") return AnswerList();
    if (!request.target.starts_with('/')) return ErrorReply(404, "no such file");
    const std::string name = request.target.substr(1);
    if (const auto text = texts_.find(name); text != texts_.end())
      return HttpText(200, kJson, text->second);
    struct stat info {};
    UniqueFd file;
    errno = ENOENT;
    if (IsOfModel(name) && HasServedCharacters(name))
      file = OpenRegular(options_.directory + "/" + name, &info);
    if (file.valid()) return AnswerFile(std::move(file), info, request, std::move(wake));
    const bool busy = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
    return busy ? ErrorReply(503, "too many files are open") : ErrorReply(404, "no such file");
  }

  std::unique_ptr<HttpReply> AnswerList() const {
    const StatusOr<std::vector<ModelFile>> files = ListModelFiles(options_.directory);
    if (!files.ok()) return ErrorReply(500, "cannot list the files");
    nlohmann::ordered_json list = {{"lockstep", "files"},
                                   {"files", nlohmann::ordered_json::array()}};
    for (const ModelFile& file : *files) {
      if (!texts_.contains(file.name))
        list["files"].push_back({{"name", file.name}, {"bytes", file.bytes}});
    }
    for (const auto& [name, text] : texts_)
      list["files"].push_back({{"name", name}, {"bytes", text.size()}});
    return HttpText(200, kJson, list.dump() + "\n");
  }

  std::unique_ptr<HttpReply> AnswerFile(UniqueFd file, const struct stat& info,
                                        const HttpCall& request, std::function<void()> wake) {
    const auto size = static_cast<uint64_t>(info.st_size);
    HttpHead head;
    head.fields = {{"Accept-Ranges", "bytes, strided"},
                   {"ETag", EtagOf(info)},
                   {"Content-Type", "application/octet-stream"}};
    StridedRange pieces{0, size};
    if (const std::string_view text = request.Field("Range"); !text.empty()) {
      const std::optional<FileRange> range = ParseFileRange(text, size);
      head.status = range.has_value() ? 206 : 416;
      pieces = range.has_value() ? range->pieces : StridedRange{};
      head.fields.push_back(
          {"Content-Range", range.has_value() ? range->text : absl::StrFormat("bytes */%d", size)});
    }
    head.body_bytes = pieces.total();
    const bool with_digest = request.method == "GET" && IsSoonRead(pieces) &&
                             request.Field(kWantDigestHeader) == kDigestName;
    return std::make_unique<FileReply>(std::move(file), std::move(head), pieces, with_digest,
                                       std::move(wake), &bytes_sent_);
  }

  const FileServerOptions options_;
  const std::string token_;
  std::map<std::string, std::string> texts_;  // does not change while there are connections
  std::atomic<uint64_t> bytes_sent_{0};
  std::atomic<uint64_t> requests_{0};
  std::unique_ptr<HttpServer> server_;  // ends first
};

}  // namespace

std::string FileToken(std::string_view secret) {
  constexpr std::string_view kPurpose = "lockstep files token";
  const Proof proof = HmacSha256(secret, std::as_bytes(std::span(kPurpose)));
  std::string text;
  for (const std::byte value : proof) text += absl::StrFormat("%02x", static_cast<int>(value));
  return text;
}

StatusOr<std::vector<ModelFile>> ListModelFiles(const std::string& directory,
                                                std::vector<std::string>* unserved) {
  std::vector<ModelFile> files;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(directory));
  for (const std::string& name : names) {
    struct stat info {};
    if (!IsOfModel(name) || stat((directory + "/" + name).c_str(), &info) != 0 ||
        !S_ISREG(info.st_mode)) {
      continue;
    }
    if (HasServedCharacters(name)) {
      files.push_back({name, static_cast<uint64_t>(info.st_size)});
    } else if (unserved != nullptr) {
      unserved->push_back(name);
    }
  }
  return files;
}

StatusOr<std::unique_ptr<FileServer>> FileServer::Listen(const FileServerOptions& options) {
  if (!IsDirectory(options.directory))
    return UsageError("%s: is no directory; give the one that holds the files", options.directory);
  auto server = std::make_unique<HttpFileServer>(options);
  LOCKSTEP_RETURN_IF_ERROR(server->Bind());
  return server;
}

}  // namespace lockstep
