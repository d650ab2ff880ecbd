#include "runtime/http/stream.h"

#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <utility>

namespace lockstep {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

struct HttpStream::Tls {
  Tls(tcp::socket& socket, std::shared_ptr<asio::ssl::context> given)
      : context(std::move(given)), stream(socket, *context) {}

  const std::shared_ptr<asio::ssl::context> context;
  asio::ssl::stream<tcp::socket&> stream;
};

HttpStream::HttpStream(tcp::socket socket, std::shared_ptr<asio::ssl::context> tls)
    : socket_(std::move(socket)) {
  if (tls != nullptr) tls_ = std::make_unique<Tls>(socket_, std::move(tls));
}

HttpStream::~HttpStream() = default;

void HttpStream::Handshake(Handler handler) {
  tls_->stream.async_handshake(
      asio::ssl::stream_base::server,
      [handler = std::move(handler)](const error_code& error) { handler(error, 0); });
}

void HttpStream::Read(asio::mutable_buffer buffer, Handler handler) {
  if (tls_ != nullptr) return tls_->stream.async_read_some(buffer, std::move(handler));
  socket_.async_read_some(buffer, std::move(handler));
}

void HttpStream::Write(const Buffers& buffers, Handler handler) {
  if (tls_ != nullptr) {
    asio::async_write(tls_->stream, buffers, std::move(handler));
  } else {
    asio::async_write(socket_, buffers, std::move(handler));
  }
}

void HttpStream::EndWriting(Handler done) {
  if (tls_ != nullptr) {
    tls_->stream.async_shutdown(
        [done = std::move(done)](const error_code& error) { done(error, 0); });
    return;
  }
  error_code error;
  socket_.shutdown(tcp::socket::shutdown_send, error);
}

void HttpStream::Close() {
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

}  // namespace lockstep
