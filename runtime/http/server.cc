#include "runtime/http/server.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/string.hpp>
#include <chrono>
#include <thread>
#include <utility>

#include "runtime/http/connection.h"

namespace lockstep {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int kBacklog = 512;

std::chrono::milliseconds Ms(int64_t value) { return std::chrono::milliseconds(value); }

class TextReply final : public HttpReply {
 public:
  TextReply(HttpHead head, std::string text) : head_(std::move(head)), text_(std::move(text)) {}
  std::optional<HttpHead> Head() override { return head_; }
  HttpPart Next() override { return {text_, true, false}; }

 private:
  HttpHead head_;
  std::string text_;
};

class AsioHttpServer final : public HttpServer {
 public:
  explicit AsioHttpServer(const HttpServerOptions& options) : shared_(options) {
    if (options.most_body_bytes > 0) shared_.workers.emplace(std::max(1, options.workers));
  }

  ~AsioHttpServer() override {
    context_.stop();
    for (std::jthread& thread : threads_) thread.join();
    threads_.clear();
    if (shared_.workers.has_value()) shared_.workers->stop();
    shared_.workers.reset();
    const std::lock_guard lock(shared_.gate->mutex);
    shared_.gate->open = false;
    shared_.on_room = nullptr;  // the connections end with the context, after this
  }

  Status Bind() {
    const HttpServerOptions& options = shared_.options;
    if (options.tls.given()) {
      LOCKSTEP_ASSIGN_OR_RETURN(certificate_, TlsCertificate::Load(options.tls));
    }
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
          try {
            std::make_shared<HttpConnection>(
                std::move(socket), certificate_ == nullptr ? nullptr : certificate_->Current(),
                ++connections_, shared_)
                ->Start();
            shared_.DropStrangers();
          } catch (const std::bad_alloc&) {
            return AcceptLater();
          }
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
      // What nobody caught before (no memory) does not end the server.
      try {
        context_.run();
        return;
      } catch (const std::exception& error) {
        log::Error("HTTP: %s", error.what());
      }
    }
  }

  HttpShared shared_;  // outlives the connections, which end with the context
  asio::io_context context_;
  asio::strand<asio::io_context::executor_type> accepting_ = asio::make_strand(context_);
  tcp::acceptor acceptor_{context_};
  asio::steady_timer later_{context_};
  std::unique_ptr<TlsCertificate> certificate_;  // null: no TLS
  uint64_t connections_ = 0;                     // so far
  bool waiting_ = false;                         // a connection is awaited
  bool on_loopback_ = false;
  int port_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace

std::string_view HttpCall::Field(std::string_view name) const {
  for (const HttpField& field : fields) {
    if (boost::beast::iequals(field.name, boost::beast::string_view(name.data(), name.size())))
      return field.value;
  }
  return {};
}

bool IsLoopbackName(std::string_view host) {
  if (host.starts_with('[')) return host.starts_with("[::1]");
  host = host.substr(0, host.find(':'));
  const bool address =
      host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string_view::npos;
  return address || host == "localhost";
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
