#include "runtime/http/connection.h"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <utility>

namespace lockstep {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

// One of so many connections may be a stranger's.
constexpr int kStrangersShare = 4;
// How long a client may go on to send what is not read.
constexpr int64_t kLingerMs = 5'000;
// Of the next request, while the last is being answered.
constexpr size_t kMostBytesAhead = 16 << 10;

std::chrono::milliseconds Ms(int64_t value) { return std::chrono::milliseconds(value); }

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

void HttpShared::Forget(uint64_t stranger) {
  const std::lock_guard lock(mutex);
  strangers.erase(stranger);
}

void HttpShared::DropStrangers() {
  const auto most = static_cast<size_t>(std::max(1, options.most_connections / kStrangersShare));
  std::vector<std::shared_ptr<HttpConnection>> dropped;  // which end without the mutex
  const std::lock_guard lock(mutex);
  while (strangers.size() > most) {
    dropped.push_back(strangers.begin()->second.lock());
    strangers.erase(strangers.begin());
    if (dropped.back() != nullptr) dropped.back()->Drop();
  }
}

HttpConnection::HttpConnection(tcp::socket socket, std::shared_ptr<asio::ssl::context> tls,
                               uint64_t number, HttpShared& shared)
    : shared_(shared),
      number_(number),
      stream_(std::move(socket), std::move(tls)),
      deadline_(stream_.executor()),
      silence_(stream_.executor()) {
  shared_.connections.fetch_add(1);
}

HttpConnection::~HttpConnection() {
  EndReply();
  LetGoOfBody();
  shared_.connections.fetch_sub(1);
  shared_.Forget(number_);
  if (shared_.on_room) shared_.on_room();
}

void HttpConnection::Start() {
  {
    const std::lock_guard lock(shared_.mutex);
    shared_.strangers[number_] = weak_from_this();
  }
  asio::dispatch(stream_.executor(),
                 [self = shared_from_this()] { self->Try([&] { self->Shake(); }); });
}

void HttpConnection::Drop() {
  asio::post(stream_.executor(), [self = shared_from_this()] { self->Close(); });
}

void HttpConnection::Prove() {
  if (!std::exchange(proven_, true)) shared_.Forget(number_);
}

void HttpConnection::ExpireIn(int64_t ms) {
  deadline_.expires_after(Ms(ms));
  deadline_.async_wait([self = shared_from_this()](const error_code& error) {
    // It may have been put off when this was under way already.
    if (!error && self->deadline_.expiry() <= std::chrono::steady_clock::now()) self->Close();
  });
}

void HttpConnection::ExpireNever() {
  deadline_.expires_at(std::chrono::steady_clock::time_point::max());
}

// A stranger has one limit for everything up to the end of the first head: it helps nobody to send
// it byte by byte.
void HttpConnection::Shake() {
  ExpireIn(shared_.options.request_ms);
  if (!stream_.encrypted()) return AwaitRequest();
  stream_.Handshake([self = shared_from_this()](const error_code& error, size_t) {
    self->Try([&] { error ? self->Close() : self->AwaitRequest(); });
  });
}

void HttpConnection::AwaitRequest() {
  if (shared_.ending || closed_) return Close();
  phase_ = Phase::kHead;
  parser_.emplace();
  parser_->header_limit(shared_.options.most_head_bytes);
  parser_->body_limit(shared_.options.most_body_bytes);
  if (proven_) ExpireIn(shared_.options.idle_ms);
  Parse();
}

void HttpConnection::Read() {
  if (reading_ || closed_) return;
  reading_ = true;
  stream_.Read(asio::buffer(incoming_),
               [self = shared_from_this()](const error_code& error, size_t bytes) {
                 self->Try([&] { self->HaveBytes(error, bytes); });
               });
}

void HttpConnection::HaveBytes(const error_code& error, size_t bytes) {
  reading_ = false;
  // A client that hangs up wants no answer; one that only says that it sends no more counts as
  // gone.
  if (error || closed_) return Close();
  if (phase_ == Phase::kEnd) return Read();
  const auto room = buffer_.prepare(bytes);
  asio::buffer_copy(room, asio::buffer(incoming_), bytes);
  buffer_.commit(bytes);
  if (phase_ != Phase::kAnswer) return Parse();
  if (buffer_.size() < kMostBytesAhead) Read();
}

void HttpConnection::Parse() {
  if (writing_) return;  // "100 Continue"
  while (buffer_.size() > 0) {
    error_code error;
    buffer_.consume(parser_->put(buffer_.cdata(), error));
    if (error == http::error::need_more) break;
    if (phase_ == Phase::kHead) {
      if (error || parser_->is_header_done()) return HaveHead(error);
    } else {
      HaveMore(error);
      if (phase_ != Phase::kBody || closed_) return;
    }
  }
  Read();
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
  if (parser_->is_done()) return HaveRequest();
  phase_ = Phase::kBody;
  ExpireIn(shared_.options.body_ms);
  if (!beast::iequals(parser_->get()[http::field::expect], "100-continue")) return Parse();
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  writing_ = true;
  stream_.Write({asio::buffer(kContinue)},
                [self = shared_from_this()](const error_code& error, size_t) {
                  self->writing_ = false;
                  self->Try([&] { error || self->closed_ ? self->Close() : self->Parse(); });
                });
}

// What is there of a body counts with those of all others.
void HttpConnection::HaveMore(const error_code& error) {
  const uint64_t bytes = parser_->get().body().size();
  const uint64_t more = bytes - std::exchange(body_bytes_, bytes);
  const uint64_t together = shared_.body_bytes.fetch_add(more) + more;
  if (error) return Refuse(error);
  if (together > shared_.options.most_body_bytes_together) {
    parser_->get().body() = {};
    LetGoOfBody();
    keep_ = false;
    return Begin(shared_.handler.malformed(request_, 503, "too many large requests at once"));
  }
  if (parser_->is_done()) HaveRequest();
}

void HttpConnection::LetGoOfBody() { shared_.body_bytes.fetch_sub(std::exchange(body_bytes_, 0)); }

void HttpConnection::HaveRequest() {
  unread_ = false;
  request_.body = std::move(parser_->get().body());
  BeginAnswer();
  if (!request_.body.empty()) return AnswerElsewhere();
  std::unique_ptr<HttpReply> reply = shared_.handler.answer(std::move(request_), Waker());
  LetGoOfBody();
  Begin(std::move(reply));
}

// So that a long prompt, or a schema that takes long to compile, holds up nobody's stream.
// Connections and the bytes of all bodies bound what waits.
void HttpConnection::AnswerElsewhere() {
  asio::post(*shared_.workers, [self = shared_from_this(), wake = Waker()]() mutable {
    std::unique_ptr<HttpReply> reply;
    try {
      reply = self->shared_.handler.answer(std::move(self->request_), wake);
    } catch (const std::exception& error) {
      log::Error("HTTP: %s", error.what());
    }
    const auto executor = self->stream_.executor();
    asio::post(executor, [self = std::move(self), reply = std::move(reply)]() mutable {
      self->Try([&] {
        self->LetGoOfBody();
        if (!self->closed_) self->Begin(std::move(reply));
      });
    });
  });
}

// A request that was not understood: the client hears why if it is still there.
void HttpConnection::Refuse(const error_code& error) {
  keep_ = false;
  unread_ = true;
  const HttpServerOptions& options = shared_.options;
  int status = 400;
  std::string what = "not an HTTP request: " + error.message();
  if (error == http::error::body_limit) {
    status = 413;
    what = absl::StrFormat("the body is larger than %d bytes", options.most_body_bytes);
  } else if (error == http::error::header_limit) {
    status = 431;
    what = absl::StrFormat("the head is larger than %d bytes", options.most_head_bytes);
  }
  Begin(shared_.handler.malformed(request_, status, what));
}

std::function<void()> HttpConnection::Waker() {
  return [weak = weak_from_this(), gate = shared_.gate] {
    const std::lock_guard lock(gate->mutex);
    if (!gate->open) return;
    std::shared_ptr<HttpConnection> self = weak.lock();
    if (self == nullptr) return;
    const auto executor = self->stream_.executor();
    // The connection ends on its strand or with the server, never here.
    asio::post(executor, [self = std::move(self)] { self->Try([&] { self->Pump(); }); });
  };
}

// From here on the answer is being made; how long that takes is not the client's to bound.
void HttpConnection::BeginAnswer() {
  if (std::exchange(answering_, true)) return;
  {
    const std::lock_guard lock(shared_.mutex);
    ++shared_.answering;
  }
  phase_ = Phase::kAnswer;
  begun_ = chunked_ = bodiless_ = last_ = false;
  ExpireNever();
  Read();
}

void HttpConnection::Begin(std::unique_ptr<HttpReply> reply) {
  reply_ = std::move(reply);
  if (reply_ == nullptr) return Close();
  BeginAnswer();
  Pump();
}

// Sends what there is, if nothing is being sent.
void HttpConnection::Pump() {
  if (reply_ == nullptr || writing_) return;
  if (!begun_ && !MakeHead()) return;
  if (bodiless_) return Send({}, true);
  const HttpPart part = reply_->Next();
  if (part.failed) return Close();
  if (!part.bytes.empty() || part.last || !head_.empty()) return Send(part.bytes, part.last);
  WatchSilence();
}

// False if there is none yet.
bool HttpConnection::MakeHead() {
  const std::optional<HttpHead> head = reply_->Head();
  if (!head.has_value()) return false;
  begun_ = true;
  const auto& request = parser_->get();
  chunked_ = !head->body_bytes.has_value() && request.version() >= 11;
  // Without a length and without chunks the end of the connection is the end of the body.
  keep_ = keep_ && !head->close && !shared_.ending && (head->body_bytes.has_value() || chunked_);
  bodiless_ = request.method() == http::verb::head;
  head_ = HeadText(*head);
  return true;
}

std::string HttpConnection::HeadText(const HttpHead& head) const {
  const auto& request = parser_->get();
  const bool old = request.version() < 11;
  const auto reason = http::obsolete_reason(static_cast<http::status>(head.status));
  std::string text =
      absl::StrFormat("HTTP/1.%d %d %s\r\n", old ? 0 : 1, head.status, std::string(View(reason)));
  for (const HttpField& field : head.fields) text += field.name + ": " + field.value + "\r\n";
  text += "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n";
  if (head.body_bytes.has_value())
    text += absl::StrFormat("Content-Length: %d\r\n", *head.body_bytes);
  if (chunked_) text += "Transfer-Encoding: chunked\r\n";
  if (!keep_) text += "Connection: close\r\n";
  if (keep_ && old) text += "Connection: keep-alive\r\n";
  return text + "\r\n";
}

void HttpConnection::Send(std::string_view bytes, bool last) {
  writing_ = true;
  last_ = last;
  silence_watched_ = false;
  silence_.cancel();
  static constexpr std::string_view kEnd = "\r\n", kLast = "0\r\n\r\n";
  chunk_.clear();
  const bool framed = chunked_ && !bodiless_;
  if (framed && !bytes.empty()) chunk_ = absl::StrFormat("%x\r\n", bytes.size());
  ExpireIn(shared_.options.part_ms);
  stream_.Write({asio::buffer(head_), asio::buffer(chunk_), asio::buffer(bytes),
                 asio::buffer(chunk_.empty() ? std::string_view() : kEnd),
                 asio::buffer(framed && last_ ? kLast : std::string_view())},
                [self = shared_from_this()](const error_code& error, size_t) {
                  self->Try([&] { self->Written(error); });
                });
}

void HttpConnection::Written(const error_code& error) {
  writing_ = false;
  head_.clear();
  if (error || closed_) return Close();  // it may have ended well before it was closed
  ExpireNever();
  last_ ? Done() : Pump();
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
      if (const std::string_view sign = self->reply_->Sign(); !sign.empty())
        self->Send(sign, false);
    });
  });
}

void HttpConnection::EndReply() {
  reply_.reset();
  if (!std::exchange(answering_, false)) return;
  const std::lock_guard lock(shared_.mutex);
  if (--shared_.answering == 0) shared_.idle.notify_all();
}

void HttpConnection::Done() {
  EndReply();
  if (keep_) return AwaitRequest();
  // Through TLS the end of an answer is told, so that nobody can cut it short unseen.
  unread_ || stream_.encrypted() ? Linger() : Close();
}

// A client that is still sending would lose the answer if the connection just closed.
void HttpConnection::Linger() {
  phase_ = Phase::kEnd;
  ExpireIn(kLingerMs);
  stream_.EndWriting([self = shared_from_this()](const error_code&, size_t) {});
  Read();
}

void HttpConnection::Close() {
  closed_ = true;
  if (!writing_) EndReply();  // else Written comes, with an error
  deadline_.cancel();
  silence_.cancel();
  stream_.Close();
}

}  // namespace lockstep
