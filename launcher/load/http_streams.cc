#include "launcher/load/http_streams.h"

#include <curl/curl.h>
#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

constexpr uint64_t kMostKeyBytes = 4096;
// For everything in this process but connections.
constexpr rlim_t kOtherDescriptors = 64;
constexpr rlim_t kMostConnections = 60'000;  // about as many ports as there are to connect from

// How many connections this process may have, after it has asked for as many as it is allowed.
size_t AllowConnections() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1;
  limit.rlim_cur = std::min(limit.rlim_max, kMostConnections + kOtherDescriptors);
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) (void)getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur > kOtherDescriptors ? limit.rlim_cur - kOtherDescriptors : 1;
}

// The same words for all failures of a kind, so that they can be counted.
std::string WordsFor(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
      return "the host's name was not found";
    case CURLE_COULDNT_CONNECT:
      return "no connection";
    case CURLE_OPERATION_TIMEDOUT:
      return "no end in time";
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
      return "the connection broke";
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_PEER_FAILED_VERIFICATION:
      return "no TLS connection";
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
      return "the answer is not HTTP";
    default:
      return curl_easy_strerror(code);
  }
}

}  // namespace

StatusOr<std::string> ReadApiKey(const std::string& path) {
  const StatusOr<std::string> text = ReadTextFile(path, kMostKeyBytes);
  if (!text.ok()) return UsageError("--api-key-file: %s", MessageOf(text.status()));
  constexpr const char* kBlanks = " \t\r\n";
  const size_t begin = text->find_first_not_of(kBlanks);
  if (begin == std::string::npos)
    return UsageError("--api-key-file %s: is empty; it must hold the key", path);
  const std::string key = text->substr(begin, text->find_last_not_of(kBlanks) + 1 - begin);
  const bool one_word =
      std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (!one_word) {
    return UsageError(
        "--api-key-file %s: must hold one key and nothing else; the server's file, with names and "
        "SHA-256, does not have the keys themselves",
        path);
  }
  return key;
}

struct HttpStreams::Stream {
  CURL* easy = nullptr;
  std::string body;
  std::unique_ptr<HttpTaker> taker;
  char error_text[CURL_ERROR_SIZE] = "";

  Stream() = default;
  ~Stream() {
    if (easy != nullptr) curl_easy_cleanup(easy);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int status() const {
    long code = 0;
    (void)curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &code);
    return static_cast<int>(code);
  }

  static size_t TakeBody(char* data, size_t size, size_t count, void* user) {
    auto* stream = static_cast<Stream*>(user);
    return stream->taker->Take(stream->status(), {data, size * count}) ? size * count : 0;
  }

  HttpEnd EndWith(CURLcode code) const {
    HttpEnd end;
    end.status = status();
    curl_header* header = nullptr;
    if (curl_easy_header(easy, "Retry-After", 0, CURLH_HEADER, -1, &header) == CURLHE_OK)
      end.retry_after = header->value;
    if (code != CURLE_OK) {
      end.broken = WordsFor(code);
      end.detail = error_text[0] != '\0' ? error_text : curl_easy_strerror(code);
    }
    return end;
  }
};

HttpStreams::HttpStreams(HttpStreamOptions options) : options_(std::move(options)) {
  LOCKSTEP_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
  multi_ = curl_multi_init();
  curl_slist* headers = curl_slist_append(nullptr, "Content-Type: application/json");
  // Without this, long bodies wait up to a second for leave to be sent.
  headers = curl_slist_append(headers, "Expect:");
  LOCKSTEP_CHECK(multi_ != nullptr && headers != nullptr);
  headers_ = headers;
  most_open_ = AllowConnections();
  curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(most_open_));
}

HttpStreams::~HttpStreams() {
  for (const auto& stream : streams_) (void)curl_multi_remove_handle(multi_, stream->easy);
  streams_.clear();
  (void)curl_multi_cleanup(multi_);
  curl_slist_free_all(static_cast<curl_slist*>(headers_));
  curl_global_cleanup();
}

void HttpStreams::Start(const std::string& path, std::string body, int64_t timeout_ms,
                        std::unique_ptr<HttpTaker> taker) {
  auto stream = std::make_unique<Stream>();
  CURL* const curl = stream->easy = curl_easy_init();
  LOCKSTEP_CHECK(curl != nullptr);
  stream->body = std::move(body);
  stream->taker = std::move(taker);
  curl_easy_setopt(curl, CURLOPT_URL, (options_.server.directory + path).c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "lockstep");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, stream->error_text);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout_ms));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(timeout_ms));
  if (IsLoopbackHost(options_.server.host)) curl_easy_setopt(curl, CURLOPT_PROXY, "");
  if (!options_.ca_file.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, options_.ca_file.c_str());
  if (!options_.key.empty()) {
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, options_.key.c_str());
    // A proxy would see the key.
    if (options_.server.scheme == "http") curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
  }
  if (!stream->body.empty()) {
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, static_cast<curl_slist*>(headers_));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(stream->body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, stream->body.data());
  }
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, Stream::TakeBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, stream.get());
  curl_easy_setopt(curl, CURLOPT_PRIVATE, stream.get());
  LOCKSTEP_CHECK(curl_multi_add_handle(multi_, curl) == CURLM_OK);
  streams_.push_back(std::move(stream));
}

void HttpStreams::Turn(int64_t longest_ms) {
  (void)curl_multi_poll(multi_, nullptr, 0, static_cast<int>(longest_ms), nullptr);
  int running = 0;
  LOCKSTEP_CHECK(curl_multi_perform(multi_, &running) == CURLM_OK);
  TakeEnds();
}

void HttpStreams::TakeEnds() {
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    const CURLcode code = message->data.result;
    char* pointer = nullptr;
    (void)curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &pointer);
    auto* stream = reinterpret_cast<Stream*>(pointer);
    stream->taker->End(stream->EndWith(code));
    (void)curl_multi_remove_handle(multi_, stream->easy);  // `message` is gone with it
    const auto found =
        std::find_if(streams_.begin(), streams_.end(),
                     [&](const std::unique_ptr<Stream>& one) { return one.get() == stream; });
    std::swap(*found, streams_.back());
    streams_.pop_back();
  }
}

}  // namespace lockstep
