#include "launcher/files/file_server.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "collectives/secret.h"
#include "launcher/file_range.h"
#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/weights/http_answer.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kChunkBytes = size_t{256} << 10;
constexpr char kJson[] = "application/json";
constexpr uint32_t kMostHeadBytes = 8 << 10;
constexpr int kBacklog = 512;
constexpr int kUnprovenShare = 4;  // one of so many connections may be a stranger's

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

// A page of another site must not reach us by a name of its own.
bool IsLoopbackName(std::string_view host) {
  if (!host.empty() && host.front() == '[') return host.substr(0, 5) == "[::1]";
  host = host.substr(0, host.find(':'));
  return host == "localhost" || host == "127.0.0.1";
}

struct Shared;

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

// One client's connection; lives as long as something is under way on it. All its work happens on
// the strand of its stream.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Begin() {
    asio::dispatch(stream_.get_executor(), [self = shared_from_this()] { self->AwaitRequest(); });
  }

 private:
  using Head = http::response<http::empty_body>;

  void AwaitRequest();
  void Answer();
  bool IsAllowed() const;
  void AnswerFile(const std::string& name);
  void AnswerText(http::status status, const std::string& type, std::string text);
  void AnswerError(http::status status, const std::string& text);
  bool WantsDigest() const;
  void AddToDigest();
  void SendHead();
  void SendChunk();
  void Prove();
  void Next();
  void Close();

  Shared& shared_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kMostHeadBytes};
  std::optional<http::request_parser<http::empty_body>> parser_;
  bool proven_ = false;  // a request was let in
  // The answer: a text or a part of a file.
  std::optional<Head> head_;
  std::optional<http::response_serializer<http::empty_body>> serializer_;
  std::optional<http::response<http::string_body>> text_;
  UniqueFd file_;
  PieceReader left_;    // of the file, to be sent
  PieceReader unread_;  // of the same, to be added to the digest
  std::optional<DigestStream> digest_;
  std::vector<std::byte> chunk_;
};

struct Shared {
  explicit Shared(const FileServerOptions& given)
      : options(given), token(FileToken(given.secret)) {}

  const FileServerOptions options;
  const std::string token;
  std::map<std::string, std::string> texts;  // does not change while there are connections
  bool Full() const {
    return connections >= options.most_connections ||
           unproven >= std::max(1, options.most_connections / kUnprovenShare);
  }

  std::atomic<int> connections{0};
  std::atomic<int> unproven{0};  // of these
  std::atomic<uint64_t> bytes_sent{0};
  std::atomic<uint64_t> requests{0};
  std::function<void()> on_room;  // one more may come; thread-safe
};

Connection::Connection(tcp::socket socket, Shared& shared)
    : shared_(shared), stream_(std::move(socket)) {
  shared_.connections.fetch_add(1);
  shared_.unproven.fetch_add(1);
}

Connection::~Connection() {
  shared_.connections.fetch_sub(1);
  if (!proven_) shared_.unproven.fetch_sub(1);
  if (shared_.on_room) shared_.on_room();
}

void Connection::Prove() {
  if (proven_) return;
  proven_ = true;
  shared_.unproven.fetch_sub(1);
  if (shared_.on_room) shared_.on_room();
}

void Connection::AwaitRequest() {
  parser_.emplace();
  parser_->header_limit(kMostHeadBytes);
  // One limit over the whole head: it helps nobody to send it byte by byte.
  stream_.expires_after(
      std::chrono::milliseconds(proven_ ? shared_.options.idle_ms : shared_.options.request_ms));
  http::async_read_header(stream_, buffer_, *parser_,
                          [self = shared_from_this()](const error_code& error, size_t) {
                            if (error) return self->Close();
                            self->Answer();
                          });
}

bool Connection::IsAllowed() const {
  const auto& request = parser_->get();
  if (shared_.options.secret.empty()) {
    const auto host = request[http::field::host];
    return IsLoopbackName({host.data(), host.size()});
  }
  const auto field = request[http::field::authorization];
  constexpr std::string_view kScheme = "Bearer ";
  std::string_view given(field.data(), field.size());
  if (given.substr(0, kScheme.size()) != kScheme) return false;
  given.remove_prefix(kScheme.size());
  // Digests of both: comparing them takes the same time whatever was sent.
  constexpr std::string_view kKey = "lockstep compare";
  return EqualProofs(HmacSha256(kKey, std::as_bytes(std::span(given))),
                     HmacSha256(kKey, std::as_bytes(std::span(shared_.token))));
}

void Connection::Answer() {
  const auto& request = parser_->get();
  const bool get = request.method() == http::verb::get, head = request.method() == http::verb::head;
  if (!IsAllowed()) {
    if (shared_.options.secret.empty())
      return AnswerError(http::status::forbidden, "this server answers to localhost only");
    return AnswerError(http::status::unauthorized, "the cluster's secret is needed");
  }
  if (!get && !head) return AnswerError(http::status::method_not_allowed, "GET and HEAD only");
  // A body is not read, so nothing behind it could be understood.
  if (!parser_->is_done()) return AnswerError(http::status::bad_request, "a body has no use here");
  shared_.requests.fetch_add(1);
  Prove();
  const auto target = request.target();
  const std::string path(target.data(), target.size());
  if (path != "/") return AnswerFile(path);
  const StatusOr<std::vector<ModelFile>> files = ListModelFiles(shared_.options.directory);
  if (!files.ok()) return AnswerError(http::status::internal_server_error, "cannot list the files");
  nlohmann::ordered_json list = {{"lockstep", "files"}, {"files", nlohmann::ordered_json::array()}};
  const auto& texts = shared_.texts;
  for (const ModelFile& file : *files) {
    if (!texts.contains(file.name))
      list["files"].push_back({{"name", file.name}, {"bytes", file.bytes}});
  }
  for (const auto& [name, text] : texts)
    list["files"].push_back({{"name", name}, {"bytes", text.size()}});
  AnswerText(http::status::ok, kJson, list.dump() + "\n");
}

void Connection::AnswerFile(const std::string& path) {
  const std::string name = path.substr(1);
  const auto& texts = shared_.texts;
  if (const auto text = texts.find(name); path[0] == '/' && text != texts.end())
    return AnswerText(http::status::ok, kJson, text->second);
  struct stat info {};
  errno = ENOENT;
  if (path[0] == '/' && IsOfModel(name) && HasServedCharacters(name))
    file_ = OpenRegular(shared_.options.directory + "/" + name, &info);
  if (!file_.valid()) {
    const bool busy = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
    return busy ? AnswerError(http::status::service_unavailable, "too many files are open")
                : AnswerError(http::status::not_found, "no such file");
  }
  const auto& request = parser_->get();
  const auto size = static_cast<uint64_t>(info.st_size);
  Head head;
  head.set(http::field::accept_ranges, "bytes, strided");
  head.set(http::field::etag, EtagOf(info));
  head.set(http::field::content_type, "application/octet-stream");
  StridedRange pieces{0, size};
  head.result(http::status::ok);
  if (request.count(http::field::range) > 0) {
    const auto text = request[http::field::range];
    const std::optional<FileRange> range = ParseFileRange({text.data(), text.size()}, size);
    if (!range.has_value()) {
      file_ = UniqueFd();
      head.result(http::status::range_not_satisfiable);
      head.set(http::field::content_range, absl::StrFormat("bytes */%d", size));
      pieces = {};
    } else {
      pieces = range->pieces;
      head.result(http::status::partial_content);
      head.set(http::field::content_range, range->text);
    }
  }
  head.content_length(pieces.total());
  left_ = request.method() == http::verb::head ? PieceReader() : PieceReader(pieces);
  head.version(request.version());
  head.keep_alive(request.keep_alive());
  head_ = std::move(head);
  if (left_.done() || !IsSoonRead(pieces) || !WantsDigest()) return SendHead();
  unread_ = left_;
  digest_.emplace();
  AddToDigest();
}

bool Connection::WantsDigest() const {
  const auto wanted = parser_->get()[kWantDigestHeader];
  return std::string_view(wanted.data(), wanted.size()) == kDigestName;
}

// The bytes are read twice, the second time from memory. A chunk at a time: others get their turns.
void Connection::AddToDigest() {
  chunk_.resize(kChunkBytes);
  const size_t got = unread_.Read(file_.get(), chunk_);
  if (got == 0) return Close();
  digest_->Add(std::span(chunk_).first(got));
  if (!unread_.done()) {
    return asio::post(stream_.get_executor(), [self = shared_from_this()] { self->AddToDigest(); });
  }
  head_->set(kDigestHeader, absl::StrFormat("%016x", digest_->Value()));
  SendHead();
}

void Connection::SendHead() {
  serializer_.emplace(*head_);
  stream_.expires_after(std::chrono::milliseconds(shared_.options.piece_ms));
  http::async_write_header(stream_, *serializer_,
                           [self = shared_from_this()](const error_code& error, size_t) {
                             if (error) return self->Close();
                             self->SendChunk();
                           });
}

void Connection::SendChunk() {
  if (left_.done()) return Next();
  chunk_.resize(kChunkBytes);
  const size_t got = left_.Read(file_.get(), chunk_);
  // The head has promised more: only a cut connection tells the client.
  if (got == 0) return Close();
  stream_.expires_after(std::chrono::milliseconds(shared_.options.piece_ms));
  asio::async_write(stream_, asio::buffer(chunk_.data(), got),
                    [self = shared_from_this()](const error_code& error, size_t bytes) {
                      self->shared_.bytes_sent.fetch_add(bytes);
                      if (error) return self->Close();
                      self->SendChunk();
                    });
}

void Connection::AnswerText(http::status status, const std::string& type, std::string text) {
  text_.emplace(status, parser_->get().version());
  text_->set(http::field::content_type, type);
  text_->set(http::field::cache_control, "no-store");
  if (status == http::status::unauthorized) text_->set(http::field::www_authenticate, "Bearer");
  // Who was refused, or sent what cannot be understood, begins anew.
  text_->keep_alive(parser_->get().keep_alive() &&
                    (status == http::status::ok || status == http::status::not_found));
  text_->content_length(text.size());
  if (parser_->get().method() != http::verb::head) text_->body() = std::move(text);
  stream_.expires_after(std::chrono::milliseconds(shared_.options.piece_ms));
  http::async_write(stream_, *text_, [self = shared_from_this()](const error_code& error, size_t) {
    if (error || !self->text_->keep_alive()) return self->Close();
    self->Next();
  });
}

void Connection::AnswerError(http::status status, const std::string& text) {
  AnswerText(status, "text/plain", text + "\n");
}

void Connection::Next() {
  const bool keep = parser_->get().keep_alive();
  file_ = UniqueFd();
  head_.reset();
  if (!keep) return Close();
  AwaitRequest();
}

void Connection::Close() {
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.close();
}

class AsioFileServer final : public FileServer {
 public:
  explicit AsioFileServer(const FileServerOptions& options) : shared_(options) {}

  ~AsioFileServer() override {
    context_.stop();
    for (std::jthread& thread : threads_) thread.join();
    threads_.clear();
    shared_.on_room = nullptr;  // the connections end with the context, after this
  }

  Status Bind() {
    const FileServerOptions& options = shared_.options;
    const std::string where = absl::StrFormat("--host %s --port %d", options.host, options.port);
    error_code error;
    tcp::resolver resolver(context_);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port),
                         tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error || found.empty()) return UsageError("%s: %s", where, error.message());
    const tcp::endpoint endpoint = *found.begin();
    if (options.secret.empty() && !endpoint.address().is_loopback()) {
      return UsageError(
          "--host %s can be reached from other machines: make a secret with `umask 077; openssl "
          "rand -hex 32 > FILE`, and give --secret-file FILE here and to lockstep shard --from",
          options.host);
    }
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kBacklog, error);
    if (error) return UsageError("%s: cannot listen: %s", where, error.message());
    port_ = acceptor_.local_endpoint(error).port();
    return OkStatus();
  }

  void Serve(std::map<std::string, std::string> texts) override {
    shared_.texts = std::move(texts);
    shared_.on_room = [this] { asio::post(accepting_, [this] { Accept(); }); };
    asio::post(accepting_, [this] { Accept(); });
    for (int i = 0; i < shared_.options.threads; ++i)
      threads_.emplace_back([this] { RunContext(); });
  }

  int port() const override { return port_; }
  uint64_t bytes_sent() const override { return shared_.bytes_sent; }
  uint64_t requests() const override { return shared_.requests; }

 private:
  // On accepting_ only.
  void Accept() {
    if (waiting_ || shared_.Full()) return;
    waiting_ = true;
    acceptor_.async_accept(
        asio::make_strand(context_),
        asio::bind_executor(accepting_, [this](const error_code& error, tcp::socket socket) {
          waiting_ = false;
          if (error == asio::error::operation_aborted) return;
          if (error) return AcceptLater();  // out of descriptors, for example
          error_code ignored;
          socket.set_option(tcp::no_delay(true), ignored);
          std::make_shared<Connection>(std::move(socket), shared_)->Begin();
          Accept();
        }));
  }

  void AcceptLater() {
    later_.expires_after(std::chrono::milliseconds(100));
    later_.async_wait(asio::bind_executor(accepting_, [this](const error_code& error) {
      if (!error) Accept();
    }));
  }

  void RunContext() {
    while (true) {
      // What a handler throws (no memory) ends its connection, not the server.
      try {
        context_.run();
        return;
      } catch (const std::exception& error) {
        log::Error("serving files: %s", error.what());
      }
    }
  }

  Shared shared_;  // outlives the connections, which end with the context
  asio::io_context context_;
  asio::strand<asio::io_context::executor_type> accepting_ = asio::make_strand(context_);
  tcp::acceptor acceptor_{context_};
  asio::steady_timer later_{context_};
  bool waiting_ = false;  // a connection is awaited
  int port_ = 0;
  std::vector<std::jthread> threads_;
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
  auto server = std::make_unique<AsioFileServer>(options);
  LOCKSTEP_RETURN_IF_ERROR(server->Bind());
  return server;
}

}  // namespace lockstep
