#include "runtime/http/connection.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <utility>

namespace lockstep {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

// How long a client may go on to send what is not read.
constexpr int64_t kLingerMs = 5'000;
constexpr int64_t kWatchAgainMs = 1'000;

std::chrono::milliseconds Ms(int64_t value) { return std::chrono::milliseconds(value); }

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

HttpConnection::HttpConnection(tcp::socket socket, HttpShared& shared)
    : shared_(shared),
      stream_(std::move(socket)),
      buffer_(shared.options.most_head_bytes + (size_t{64} << 10)),
      silence_(stream_.get_executor()),
      watch_(stream_.get_executor()) {
  shared_.connections.fetch_add(1);
  shared_.unproven.fetch_add(1);
}

HttpConnection::~HttpConnection() {
  EndReply();
  LetGoOfBody();
  shared_.connections.fetch_sub(1);
  if (!proven_) shared_.unproven.fetch_sub(1);
  if (shared_.on_room) shared_.on_room();
}

void HttpConnection::Prove() {
  if (proven_) return;
  proven_ = true;
  shared_.unproven.fetch_sub(1);
  if (shared_.on_room) shared_.on_room();
}

void HttpConnection::AwaitRequest() {
  if (shared_.ending || closed_) return Close();
  parser_.emplace();
  parser_->header_limit(shared_.options.most_head_bytes);
  parser_->body_limit(shared_.options.most_body_bytes);
  // One limit over the whole head: it helps nobody to send it byte by byte.
  stream_.expires_after(Ms(proven_ ? shared_.options.idle_ms : shared_.options.request_ms));
  http::async_read_header(stream_, buffer_, *parser_,
                          [self = shared_from_this()](const error_code& error, size_t) {
                            self->Try([&] { self->HaveHead(error); });
                          });
}

void HttpConnection::HaveHead(const error_code& error) {
  request_ = {};
  // Who may not ask hears that first, not that the question is too long.
  const bool too_long = error == http::error::body_limit;
  if (error && !too_long) return Refuse(error);
  if (shared_.ending) return Close();
  const auto& head = parser_->get();
  request_.method = View(head.method_string());
  request_.target = View(head.target());
  for (const auto& field : head) {
    request_.fields.push_back(
        {std::string(View(field.name_string())), std::string(View(field.value()))});
  }
  keep_ = head.keep_alive();
  unread_ = too_long || !parser_->is_done();
  if (std::unique_ptr<HttpReply> refusal = shared_.handler.refuse(request_)) {
    // What is not read cannot be told from the next request.
    keep_ = keep_ && !unread_ && proven_;
    return Begin(std::move(refusal));
  }
  if (too_long) return Refuse(error);
  Prove();
  ReadBody();
}

void HttpConnection::ReadBody() {
  if (parser_->is_done()) return HaveRequest({});
  stream_.expires_after(Ms(shared_.options.body_ms));
  if (!beast::iequals(parser_->get()[http::field::expect], "100-continue")) return ReadMore();
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  asio::async_write(stream_, asio::buffer(kContinue),
                    [self = shared_from_this()](const error_code& error, size_t) {
                      self->Try([&] { error ? self->Close() : self->ReadMore(); });
                    });
}

void HttpConnection::ReadMore() {
  http::async_read_some(stream_, buffer_, *parser_,
                        [self = shared_from_this()](const error_code& error, size_t) {
                          self->Try([&] { self->HaveMore(error); });
                        });
}

// What is there of a body counts with those of all others.
void HttpConnection::HaveMore(const error_code& error) {
  const uint64_t bytes = parser_->get().body().size();
  const uint64_t more = bytes - std::exchange(body_bytes_, bytes);
  const uint64_t together = shared_.body_bytes.fetch_add(more) + more;
  if (error) return HaveRequest(error);
  if (together > shared_.options.most_body_bytes_together) {
    parser_->get().body() = {};
    LetGoOfBody();
    keep_ = false;
    return Begin(shared_.handler.malformed(request_, 503, "too many large requests at once"));
  }
  if (!parser_->is_done()) return ReadMore();
  unread_ = false;
  HaveRequest({});
}

void HttpConnection::LetGoOfBody() { shared_.body_bytes.fetch_sub(std::exchange(body_bytes_, 0)); }

void HttpConnection::HaveRequest(const error_code& error) {
  if (error) return Refuse(error);
  request_.body = std::move(parser_->get().body());
  std::unique_ptr<HttpReply> reply = shared_.handler.answer(std::move(request_), Waker());
  LetGoOfBody();
  Begin(std::move(reply));
}

// A request that was not understood: the client hears why if it is still there.
void HttpConnection::Refuse(const error_code& error) {
  keep_ = false;
  unread_ = true;
  const auto refuse = [&](int status, const std::string& what) {
    Begin(shared_.handler.malformed(request_, status, what));
  };
  const HttpServerOptions& options = shared_.options;
  if (error == http::error::body_limit)
    return refuse(413,
                  absl::StrFormat("the body is larger than %d bytes", options.most_body_bytes));
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return refuse(431,
                  absl::StrFormat("the head is larger than %d bytes", options.most_head_bytes));
  // A connection that waited for another request, or one that ended in one, is simply closed.
  const bool http_error =
      error.category() == http::make_error_code(http::error::bad_method).category();
  if (http_error && error != http::error::end_of_stream && error != http::error::partial_message)
    return refuse(400, "not an HTTP request: " + error.message());
  Close();
}

std::function<void()> HttpConnection::Waker() {
  return [weak = weak_from_this(), gate = shared_.gate] {
    const std::lock_guard lock(gate->mutex);
    if (!gate->open) return;
    std::shared_ptr<HttpConnection> self = weak.lock();
    if (self == nullptr) return;
    const auto executor = self->stream_.get_executor();
    // The connection ends on its strand or with the server, never here.
    asio::post(executor, [self = std::move(self)] { self->Try([&] { self->Pump(); }); });
  };
}

void HttpConnection::Begin(std::unique_ptr<HttpReply> reply) {
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
void HttpConnection::Pump() {
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
bool HttpConnection::SendHead() {
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

void HttpConnection::SendPart(const HttpPart& part) {
  last_ = part.last;
  Send(part.bytes);
}

void HttpConnection::Send(std::string_view bytes) {
  writing_ = true;
  silence_watched_ = false;
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
    self->Try([&] { self->Written(error); });
  });
}

void HttpConnection::Written(const error_code& error) {
  writing_ = false;
  head_.clear();
  if (error || closed_) return Close();  // it may have ended well before it was closed
  stream_.expires_never();
  last_ ? Done() : Pump();
}

// A client that hangs up wants no answer; one that only says that it sends no more counts as gone.
void HttpConnection::WatchClient() {
  if (watching_) return;
  watching_ = true;
  stream_.socket().async_wait(
      tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
        self->watching_ = false;
        if (error || self->reply_ == nullptr) return;
        char next;
        const ssize_t got =
            recv(self->stream_.socket().native_handle(), &next, 1, MSG_PEEK | MSG_DONTWAIT);
        if (got > 0) return self->WatchLater();  // the next request, sent ahead
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return self->WatchClient();
        self->Close();
      });
}

// While there is something to read, being there tells nothing.
void HttpConnection::WatchLater() {
  watching_ = true;
  watch_.expires_after(Ms(kWatchAgainMs));
  watch_.async_wait([self = shared_from_this()](const error_code& error) {
    self->watching_ = false;
    if (!error && self->reply_ != nullptr) self->WatchClient();
  });
}

// From the last byte on, however often the reply is asked meanwhile.
void HttpConnection::WatchSilence() {
  if (std::exchange(silence_watched_, true)) return;
  silence_.expires_after(Ms(shared_.options.quiet_ms));
  silence_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error) return;
    self->silence_watched_ = false;
    if (self->reply_ == nullptr || self->writing_ || !self->begun_) return;
    self->Try([&] {
      if (const std::string_view sign = self->reply_->Sign(); !sign.empty()) self->Send(sign);
    });
  });
}

void HttpConnection::EndReply() {
  if (reply_ == nullptr) return;
  reply_.reset();
  const std::lock_guard lock(shared_.mutex);
  if (--shared_.answering == 0) shared_.idle.notify_all();
}

void HttpConnection::Done() {
  EndReply();
  if (keep_) return AwaitRequest();
  unread_ ? Linger() : Close();
}

// A client that is still sending would lose the answer if the connection just closed.
void HttpConnection::Linger() {
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  stream_.expires_after(Ms(kLingerMs));
  Discard();
}

void HttpConnection::Discard() {
  stream_.async_read_some(asio::buffer(discarded_),
                          [self = shared_from_this()](const error_code& error, size_t) {
                            error ? self->Close() : self->Discard();
                          });
}

void HttpConnection::Close() {
  closed_ = true;
  if (!writing_) EndReply();  // else Written comes, with an error
  silence_.cancel();
  watch_.cancel();
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.close();
}

}  // namespace lockstep
