#include "runtime/http/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/base/log.h"

namespace lockstep {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int kBacklog = 512;
constexpr int kUnprovenShare = 4;  // one of so many connections may be a stranger's

std::chrono::milliseconds Ms(int64_t value) { return std::chrono::milliseconds(value); }

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

class TextReply final : public HttpReply {
 public:
  TextReply(HttpHead head, std::string text) : head_(std::move(head)), text_(std::move(text)) {}
  std::optional<HttpHead> Head() override { return head_; }
  HttpPart Next() override { return {text_, true, false}; }

 private:
  HttpHead head_;
  std::string text_;
};

// What connections share.
struct Shared {
  explicit Shared(const HttpServerOptions& given) : options(given) {}

  bool Full() const {
    return connections >= options.most_connections ||
           unproven >= std::max(1, options.most_connections / kUnprovenShare);
  }

  const HttpServerOptions options;
  HttpHandler handler;            // does not change while there are connections
  std::function<void()> on_room;  // one more may come; thread-safe
  std::atomic<int> connections{0};
  std::atomic<int> unproven{0};  // of these
  std::atomic<bool> ending{false};
  std::mutex mutex;
  std::condition_variable idle;  // answering fell to 0
  int answering = 0;
};

// One client's connection; lives as long as something is under way on it. All its work happens on
// the strand of its stream:
//
//   AwaitRequest -> HaveHead -> (ReadBody) -> HaveRequest -> Begin -> Pump ... -> Done ->
//   AwaitRequest
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, Shared& shared);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Start() {
    asio::dispatch(stream_.get_executor(), [self = shared_from_this()] { self->AwaitRequest(); });
  }

 private:
  using Parser = http::request_parser<http::string_body>;
  template <typename... Args>
  using Handler = void (Connection::*)(const error_code&, Args...);

  void AwaitRequest();
  void HaveHead(const error_code& error);
  void ReadBody();
  void HaveRequest(const error_code& error);
  void Refuse(const error_code& error);
  void Begin(std::unique_ptr<HttpReply> reply);
  void Pump();
  bool SendHead();
  void SendPart(const HttpPart& part);
  void Send(std::string_view bytes);
  void Written(const error_code& error);
  void WatchClient();
  void WatchSilence();
  std::function<void()> Waker();
  void Prove();
  void Done();
  void EndReply();
  void Close();

  Shared& shared_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  asio::steady_timer silence_;
  std::optional<Parser> parser_;
  HttpCall request_;
  bool proven_ = false;    // a request was let in
  bool watching_ = false;  // for the client's going
  // The answer under way.
  std::unique_ptr<HttpReply> reply_;
  std::string head_;    // to be sent, then empty
  std::string chunk_;   // the frame of a chunk
  bool begun_ = false;  // the head was made
  bool chunked_ = false;
  bool bodiless_ = false;
  bool keep_ = false;  // another request may follow
  bool writing_ = false;
  bool last_ = false;  // nothing follows what is being written
  std::atomic<bool> woken_{false};
};

Connection::Connection(tcp::socket socket, Shared& shared)
    : shared_(shared),
      stream_(std::move(socket)),
      buffer_(shared.options.most_head_bytes + (size_t{64} << 10)),
      silence_(stream_.get_executor()) {
  shared_.connections.fetch_add(1);
  shared_.unproven.fetch_add(1);
}

Connection::~Connection() {
  EndReply();
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
  if (shared_.ending) return Close();
  parser_.emplace();
  parser_->header_limit(shared_.options.most_head_bytes);
  parser_->body_limit(shared_.options.most_body_bytes);
  // One limit over the whole head: it helps nobody to send it byte by byte.
  stream_.expires_after(Ms(proven_ ? shared_.options.idle_ms : shared_.options.request_ms));
  http::async_read_header(
      stream_, buffer_, *parser_,
      [self = shared_from_this()](const error_code& error, size_t) { self->HaveHead(error); });
}

void Connection::HaveHead(const error_code& error) {
  // Who may not ask hears that first, not that the question is too long.
  const bool too_long = error == http::error::body_limit;
  if (error && !too_long) return Refuse(error);
  if (shared_.ending) return Close();
  const auto& head = parser_->get();
  request_ = {};
  request_.method = View(head.method_string());
  request_.target = View(head.target());
  for (const auto& field : head)
    request_.fields.push_back(
        {std::string(View(field.name_string())), std::string(View(field.value()))});
  keep_ = head.keep_alive();
  if (std::unique_ptr<HttpReply> refusal = shared_.handler.refuse(request_)) {
    // What is not read cannot be told from the next request.
    keep_ = keep_ && !too_long && parser_->is_done();
    return Begin(std::move(refusal));
  }
  if (too_long) return Refuse(error);
  Prove();
  ReadBody();
}

void Connection::ReadBody() {
  if (parser_->is_done()) return HaveRequest({});
  stream_.expires_after(Ms(shared_.options.body_ms));
  const auto read = [self = shared_from_this()] {
    http::async_read(self->stream_, self->buffer_, *self->parser_,
                     [self](const error_code& error, size_t) { self->HaveRequest(error); });
  };
  if (View(parser_->get()[http::field::expect]) != "100-continue") return read();
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(stream_, asio::buffer(kContinue),
                    [self = shared_from_this(), read](const error_code& error, size_t) {
                      error ? self->Close() : read();
                    });
}

void Connection::HaveRequest(const error_code& error) {
  if (error) return Refuse(error);
  request_.body = std::move(parser_->get().body());
  Begin(shared_.handler.answer(std::move(request_), Waker()));
}

// A request that was not understood: the client hears why if it is still there.
void Connection::Refuse(const error_code& error) {
  keep_ = false;
  const auto refuse = [&](int status, std::string_view what) {
    Begin(shared_.handler.malformed(status, what));
  };
  if (error == http::error::body_limit)
    return refuse(
        413, absl::StrFormat("the body is larger than %d bytes", shared_.options.most_body_bytes));
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return refuse(
        431, absl::StrFormat("the head is larger than %d bytes", shared_.options.most_head_bytes));
  // A connection that waited for another request, or one that ended in one, is simply closed.
  const bool http_error =
      error.category() == http::make_error_code(http::error::bad_method).category();
  if (http_error && error != http::error::end_of_stream && error != http::error::partial_message)
    return refuse(400, "not an HTTP request: " + error.message());
  Close();
}

std::function<void()> Connection::Waker() {
  return [weak = weak_from_this()] {
    const std::shared_ptr<Connection> self = weak.lock();
    if (self == nullptr || self->woken_.exchange(true)) return;
    asio::post(self->stream_.get_executor(), [self] {
      self->woken_ = false;
      self->Pump();
    });
  };
}

void Connection::Begin(std::unique_ptr<HttpReply> reply) {
  reply_ = std::move(reply);
  if (reply_ == nullptr) return Close();
  {
    const std::lock_guard lock(shared_.mutex);
    ++shared_.answering;
  }
  begun_ = chunked_ = bodiless_ = last_ = false;
  stream_.expires_never();
  WatchClient();
  Pump();
}

// Sends what there is, if nothing is being sent.
void Connection::Pump() {
  if (reply_ == nullptr || writing_) return;
  if (!begun_ && !SendHead()) return;
  if (bodiless_) {
    last_ = true;
    return Send({});
  }
  const HttpPart part = reply_->Next();
  if (part.failed) return Close();
  if (!part.bytes.empty() || part.last || !head_.empty()) return SendPart(part);
  WatchSilence();
}

// Makes the head; false if there is none yet.
bool Connection::SendHead() {
  const std::optional<HttpHead> head = reply_->Head();
  if (!head.has_value()) return false;
  begun_ = true;
  const auto& request = parser_->get();
  const bool old = request.version() < 11;
  chunked_ = !head->body_bytes.has_value() && !old;
  // Without a length and without chunks the end of the connection is the end of the body.
  keep_ = keep_ && !head->close && !shared_.ending && (head->body_bytes.has_value() || chunked_);
  bodiless_ = request.method() == http::verb::head;
  const auto reason = http::obsolete_reason(static_cast<http::status>(head->status));
  head_ =
      absl::StrFormat("HTTP/1.%d %d %s\r\n", old ? 0 : 1, head->status, std::string(View(reason)));
  for (const HttpField& field : head->fields) head_ += field.name + ": " + field.value + "\r\n";
  if (head->body_bytes.has_value())
    head_ += absl::StrFormat("Content-Length: %d\r\n", *head->body_bytes);
  if (chunked_) head_ += "Transfer-Encoding: chunked\r\n";
  if (!keep_) head_ += "Connection: close\r\n";
  if (keep_ && old) head_ += "Connection: keep-alive\r\n";
  head_ += "\r\n";
  return true;
}

void Connection::SendPart(const HttpPart& part) {
  last_ = part.last;
  Send(part.bytes);
}

void Connection::Send(std::string_view bytes) {
  writing_ = true;
  silence_.cancel();
  static constexpr std::string_view kEnd = "\r\n", kLast = "0\r\n\r\n";
  chunk_.clear();
  const bool framed = chunked_ && !bodiless_;
  if (framed && !bytes.empty()) chunk_ = absl::StrFormat("%x\r\n", bytes.size());
  const std::array<asio::const_buffer, 5> buffers = {
      asio::buffer(head_), asio::buffer(chunk_), asio::buffer(bytes.data(), bytes.size()),
      asio::buffer(chunk_.empty() ? std::string_view() : kEnd),
      asio::buffer(framed && last_ ? kLast : std::string_view())};
  stream_.expires_after(Ms(shared_.options.part_ms));
  asio::async_write(stream_, buffers, [self = shared_from_this()](const error_code& error, size_t) {
    self->Written(error);
  });
}

void Connection::Written(const error_code& error) {
  writing_ = false;
  head_.clear();
  if (error) return Close();
  stream_.expires_never();
  last_ ? Done() : Pump();
}

// A client that hangs up wants no answer; one that only says that it sends no more counts as gone.
void Connection::WatchClient() {
  if (watching_) return;
  watching_ = true;
  stream_.socket().async_wait(
      tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
        self->watching_ = false;
        if (error || self->reply_ == nullptr) return;
        char next;
        const ssize_t got =
            recv(self->stream_.socket().native_handle(), &next, 1, MSG_PEEK | MSG_DONTWAIT);
        if (got > 0) return;  // the next request, sent ahead: from here on only writing tells
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return self->WatchClient();
        self->Close();
      });
}

void Connection::WatchSilence() {
  silence_.expires_after(Ms(shared_.options.quiet_ms));
  silence_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->reply_ == nullptr || self->writing_ || !self->begun_) return;
    if (const std::string_view sign = self->reply_->Sign(); !sign.empty()) self->Send(sign);
  });
}

void Connection::EndReply() {
  if (reply_ == nullptr) return;
  reply_.reset();
  const std::lock_guard lock(shared_.mutex);
  if (--shared_.answering == 0) shared_.idle.notify_all();
}

void Connection::Done() {
  EndReply();
  if (!keep_) return Close();
  AwaitRequest();
}

void Connection::Close() {
  if (!writing_) EndReply();  // else Written comes, with an error
  silence_.cancel();
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.close();
}

class AsioHttpServer final : public HttpServer {
 public:
  explicit AsioHttpServer(const HttpServerOptions& options) : shared_(options) {}

  ~AsioHttpServer() override {
    context_.stop();
    for (std::jthread& thread : threads_) thread.join();
    threads_.clear();
    shared_.on_room = nullptr;  // the connections end with the context, after this
  }

  Status Bind() {
    const HttpServerOptions& options = shared_.options;
    error_code error;
    tcp::resolver resolver(context_);
    const auto found =
        resolver.resolve(options.host, std::to_string(options.port),
                         tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error || found.empty()) return UsageError("%s", error.message());
    const tcp::endpoint endpoint = *found.begin();
    on_loopback_ = endpoint.address().is_loopback();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kBacklog, error);
    if (error) return UsageError("cannot listen: %s", error.message());
    port_ = acceptor_.local_endpoint(error).port();
    return OkStatus();
  }

  void Serve(HttpHandler handler) override {
    shared_.handler = std::move(handler);
    shared_.on_room = [this] { asio::post(accepting_, [this] { Accept(); }); };
    asio::post(accepting_, [this] { Accept(); });
    for (int i = 0; i < shared_.options.threads; ++i)
      threads_.emplace_back([this] { RunContext(); });
  }

  void Shutdown(int64_t grace_ms) override {
    shared_.ending = true;
    asio::post(accepting_, [this] {
      error_code ignored;
      acceptor_.close(ignored);
    });
    std::unique_lock lock(shared_.mutex);
    shared_.idle.wait_for(lock, Ms(grace_ms), [this] { return shared_.answering == 0; });
  }

  int port() const override { return port_; }
  bool on_loopback() const override { return on_loopback_; }

 private:
  // On accepting_ only.
  void Accept() {
    if (waiting_ || shared_.ending || shared_.Full()) return;
    waiting_ = true;
    acceptor_.async_accept(
        asio::make_strand(context_),
        asio::bind_executor(accepting_, [this](const error_code& error, tcp::socket socket) {
          waiting_ = false;
          if (error == asio::error::operation_aborted) return;
          if (error) return AcceptLater();  // out of descriptors, for example
          error_code ignored;
          socket.set_option(tcp::no_delay(true), ignored);
          std::make_shared<Connection>(std::move(socket), shared_)->Start();
          Accept();
        }));
  }

  void AcceptLater() {
    later_.expires_after(Ms(100));
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
        log::Error("HTTP: %s", error.what());
      }
    }
  }

  Shared shared_;  // outlives the connections, which end with the context
  asio::io_context context_;
  asio::strand<asio::io_context::executor_type> accepting_ = asio::make_strand(context_);
  tcp::acceptor acceptor_{context_};
  asio::steady_timer later_{context_};
  bool waiting_ = false;  // a connection is awaited
  bool on_loopback_ = false;
  int port_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace

std::string_view HttpCall::Field(std::string_view name) const {
  for (const HttpField& field : fields) {
    if (beast::iequals(field.name, beast::string_view(name.data(), name.size())))
      return field.value;
  }
  return {};
}

std::unique_ptr<HttpReply> HttpText(int status, std::string_view type, std::string text,
                                    std::vector<HttpField> more) {
  HttpHead head{.status = status, .fields = std::move(more), .body_bytes = text.size()};
  head.fields.push_back({"Content-Type", std::string(type)});
  head.fields.push_back({"Cache-Control", "no-store"});
  return std::make_unique<TextReply>(std::move(head), std::move(text));
}

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Listen(const HttpServerOptions& options) {
  auto server = std::make_unique<AsioHttpServer>(options);
  LOCKSTEP_RETURN_IF_ERROR(server->Bind());
  return StatusOr<std::unique_ptr<HttpServer>>(std::move(server));
}

}  // namespace lockstep
