// A client's bytes, as they are or through TLS: one type, so that nothing above is compiled twice.
// For connection.cc alone.
#pragma once

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstddef>
#include <functional>
#include <memory>

namespace boost::asio::ssl {
class context;
}

namespace lockstep {

// Used on the strand of its socket, where its handlers are called too. At most one read and one
// write are under way; the stream outlives them.
class HttpStream {
 public:
  using Buffers = std::array<boost::asio::const_buffer, 5>;
  using Handler = std::function<void(const boost::system::error_code& error, size_t bytes)>;

  // `tls`: null for bytes as they are.
  HttpStream(boost::asio::ip::tcp::socket socket, std::shared_ptr<boost::asio::ssl::context> tls);
  ~HttpStream();

  bool encrypted() const { return tls_ != nullptr; }
  boost::asio::ip::tcp::socket::executor_type executor() { return socket_.get_executor(); }

  // Before anything else where the stream is encrypted.
  void Handshake(Handler handler);
  // Some bytes; an error when the client will send no more.
  void Read(boost::asio::mutable_buffer buffer, Handler handler);
  // All of them.
  void Write(const Buffers& buffers, Handler handler);
  // Tells the client that nothing more comes; reading goes on. `done` is called when it was told.
  void EndWriting(Handler done);
  // What is under way ends with an error.
  void Close();

 private:
  struct Tls;
  boost::asio::ip::tcp::socket socket_;
  std::unique_ptr<Tls> tls_;
};

}  // namespace lockstep
