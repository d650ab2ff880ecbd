// One connection of the HTTP server, and what all of them share. For server.cc alone.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/log.h"
#include "runtime/http/server.h"
#include "runtime/http/stream.h"

namespace lockstep {

// Whether handlers may still be posted: wakers outlive the server.
struct HttpGate {
  std::mutex mutex;
  bool open = true;
};

class HttpConnection;

// What connections share.
struct HttpShared {
  explicit HttpShared(const HttpServerOptions& given) : options(given) {}

  bool Full() const { return connections >= options.most_connections; }
  // Who came to be proven, or is gone, is no stranger.
  void Forget(uint64_t stranger);
  // Of too many strangers the oldest go: who means well has asked by then.
  void DropStrangers();

  const HttpServerOptions options;
  const std::shared_ptr<HttpGate> gate = std::make_shared<HttpGate>();
  HttpHandler handler;            // does not change while there are connections
  std::function<void()> on_room;  // one more may come; thread-safe
  std::atomic<int> connections{0};
  std::atomic<uint64_t> body_bytes{0};  // of all connections
  std::atomic<bool> ending{false};
  // For requests that take long to understand; ends before the connections do.
  std::optional<boost::asio::thread_pool> workers;
  std::mutex mutex;
  std::condition_variable idle;  // answering fell to 0
  int answering = 0;
  std::map<uint64_t, std::weak_ptr<HttpConnection>> strangers;  // by age
};

// One client's connection; lives as long as something is under way on it. All its work happens on
// the strand of its stream:
//
//   AwaitRequest -> HaveHead -> (ReadBody) -> HaveRequest -> Begin -> Pump ... -> Done ->
//   AwaitRequest
//
// It always reads: what comes in belongs to the phase that it comes in. During an answer that is
// the next request, which waits, or the news that the client is gone.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  // `number`: greater than those of all before. `tls`: null for none.
  HttpConnection(boost::asio::ip::tcp::socket socket,
                 std::shared_ptr<boost::asio::ssl::context> tls, uint64_t number,
                 HttpShared& shared);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  // Once. Any thread.
  void Start();
  // Any thread.
  void Drop();

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

  enum class Phase { kHead, kBody, kAnswer, kEnd };

  void ExpireIn(int64_t ms);
  void ExpireNever();
  void Shake();
  void AwaitRequest();
  void Read();
  void HaveBytes(const boost::system::error_code& error, size_t bytes);
  void Parse();
  void HaveHead(const boost::system::error_code& error);
  void ReadBody();
  void HaveMore(const boost::system::error_code& error);
  void LetGoOfBody();
  void HaveRequest();
  void AnswerElsewhere();
  void Refuse(const boost::system::error_code& error);
  void BeginAnswer();
  void Begin(std::unique_ptr<HttpReply> reply);
  void Pump();
  bool MakeHead();
  std::string HeadText(const HttpHead& head) const;
  void Send(std::string_view bytes, bool last);
  void Written(const boost::system::error_code& error);
  void WatchSilence();
  std::function<void()> Waker();
  void Prove();
  void Done();
  void EndReply();
  void Linger();
  void Close();

  HttpShared& shared_;
  const uint64_t number_;
  HttpStream stream_;
  boost::asio::steady_timer deadline_, silence_;
  Phase phase_ = Phase::kHead;
  bool reading_ = false;
  std::array<char, 16 << 10> incoming_;  // being read
  boost::beast::flat_buffer buffer_;     // was read
  std::optional<Parser> parser_;
  HttpCall request_;
  bool closed_ = false;
  bool proven_ = false;      // a request was let in
  uint64_t body_bytes_ = 0;  // of Shared's
  // The answer under way.
  std::unique_ptr<HttpReply> reply_;
  std::string head_;        // to be sent, then empty
  std::string chunk_;       // the frame of a chunk
  bool answering_ = false;  // one of Shared's
  bool begun_ = false;      // the head was made
  bool chunked_ = false;
  bool bodiless_ = false;
  bool keep_ = false;  // another request may follow
  bool writing_ = false;
  bool last_ = false;    // nothing follows what is being written
  bool unread_ = false;  // a body is left where it is
  bool silence_watched_ = false;
};

}  // namespace lockstep
