// One connection of the HTTP server, and what all of them share. For server.cc alone.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/log.h"
#include "runtime/http/server.h"

namespace lockstep {

// Whether handlers may still be posted: wakers outlive the server.
struct HttpGate {
  std::mutex mutex;
  bool open = true;
};

// What connections share.
struct HttpShared {
  explicit HttpShared(const HttpServerOptions& given) : options(given) {}

  // One of so many connections may be a stranger's.
  static constexpr int kUnprovenShare = 4;
  bool Full() const {
    return connections >= options.most_connections ||
           unproven >= std::max(1, options.most_connections / kUnprovenShare);
  }

  const HttpServerOptions options;
  const std::shared_ptr<HttpGate> gate = std::make_shared<HttpGate>();
  HttpHandler handler;            // does not change while there are connections
  std::function<void()> on_room;  // one more may come; thread-safe
  std::atomic<int> connections{0};
  std::atomic<int> unproven{0};         // of these
  std::atomic<uint64_t> body_bytes{0};  // of all connections
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
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpShared& shared);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void Start() {
    boost::asio::dispatch(stream_.get_executor(),
                          [self = shared_from_this()] { self->AwaitRequest(); });
  }

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  // What it throws ends the connection.
  template <typename Work>
  void Try(Work work) {
    try {
      work();
    } catch (const std::exception& error) {
      log::Error("HTTP: %s", error.what());
      Close();
    }
  }

  void AwaitRequest();
  void HaveHead(const boost::system::error_code& error);
  void ReadBody();
  void ReadMore();
  void HaveMore(const boost::system::error_code& error);
  void LetGoOfBody();
  void HaveRequest(const boost::system::error_code& error);
  void Refuse(const boost::system::error_code& error);
  void Begin(std::unique_ptr<HttpReply> reply);
  void Pump();
  bool SendHead();
  void SendPart(const HttpPart& part);
  void Send(std::string_view bytes);
  void Written(const boost::system::error_code& error);
  void WatchClient();
  void WatchLater();
  void WatchSilence();
  std::function<void()> Waker();
  void Prove();
  void Done();
  void EndReply();
  void Linger();
  void Discard();
  void Close();

  HttpShared& shared_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer silence_, watch_;
  std::optional<Parser> parser_;
  HttpCall request_;
  bool closed_ = false;
  bool proven_ = false;      // a request was let in
  bool watching_ = false;    // for the client's going
  uint64_t body_bytes_ = 0;  // of Shared's
  std::array<char, 4096> discarded_;
  // The answer under way.
  std::unique_ptr<HttpReply> reply_;
  std::string head_;    // to be sent, then empty
  std::string chunk_;   // the frame of a chunk
  bool begun_ = false;  // the head was made
  bool chunked_ = false;
  bool bodiless_ = false;
  bool keep_ = false;  // another request may follow
  bool writing_ = false;
  bool last_ = false;    // nothing follows what is being written
  bool unread_ = false;  // a body is left where it is
  bool silence_watched_ = false;
};

}  // namespace lockstep
