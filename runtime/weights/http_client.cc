#include "runtime/weights/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

constexpr int64_t kTellEveryNs = int64_t{5} * 1'000'000'000;
// So much in one try is progress: then the count of tries begins anew.
constexpr uint64_t kProgressBytes = uint64_t{64} << 10;
constexpr long kMostRedirects = 5;
constexpr int kTriesAtFirst = 2;

class UrlParts {
 public:
  explicit UrlParts(const std::string& url) : handle_(curl_url()) {
    good_ = handle_ != nullptr && curl_url_set(handle_, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK;
  }
  ~UrlParts() { curl_url_cleanup(handle_); }
  UrlParts(const UrlParts&) = delete;
  UrlParts& operator=(const UrlParts&) = delete;

  bool good() const { return good_; }
  std::string Get(CURLUPart part, unsigned flags = 0) const {
    char* text = nullptr;
    if (curl_url_get(handle_, part, &text, flags) != CURLUE_OK) return "";
    std::string copy = text;
    curl_free(text);
    return copy;
  }
  std::string Origin() const {
    return Get(CURLUPART_SCHEME) + "://" + Get(CURLUPART_HOST) + ":" +
           Get(CURLUPART_PORT, CURLU_DEFAULT_PORT);
  }

 private:
  CURLU* handle_;
  bool good_ = false;
};

// Failures of the network: another try may do better.
bool MayPass(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_ABORTED_BY_CALLBACK:
      return true;
    default:
      return false;
  }
}

// What curl's callbacks see of a transfer.
struct Transfer {
  HttpAnswer& answer;
  const HttpOptions& options;
  int64_t progress_ns = NowNs();
  bool stopped = false, stalled = false;
};

size_t TakeBody(char* data, size_t size, size_t count, void* user) {
  auto* transfer = static_cast<Transfer*>(user);
  transfer->progress_ns = NowNs();
  const auto bytes = std::as_bytes(std::span(data, size * count));
  return transfer->answer.TakeBody(bytes) ? size * count : 0;
}

size_t TakeHeader(char* data, size_t size, size_t count, void* user) {
  auto* transfer = static_cast<Transfer*>(user);
  transfer->progress_ns = NowNs();
  transfer->answer.TakeHeader({data, size * count});
  return size * count;
}

int WatchProgress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto* transfer = static_cast<Transfer*>(user);
  const HttpOptions& options = transfer->options;
  transfer->stopped = options.stop && options.stop();
  transfer->stalled = NowNs() - transfer->progress_ns > options.stall_timeout_ms * 1'000'000;
  return transfer->stopped || transfer->stalled ? 1 : 0;
}

// Where a request goes.
struct Address {
  std::string url;
  bool loopback = false;
  bool secure = false;      // it must stay encrypted
  bool with_token = false;  // it is the host of the URL that was given
  bool encrypted = false;   // from here on
};

Address AddressOf(HttpTarget* target, const HttpRequest& request) {
  Address address;
  const UrlParts given(target->url);
  {
    const std::lock_guard lock(target->mutex);
    address.url = target->direct.empty() ? target->url : target->direct;
  }
  const UrlParts parts(address.url);
  const std::string host = parts.Get(CURLUPART_HOST);
  address.loopback = IsLoopbackHost(host);
  address.secure = given.Get(CURLUPART_SCHEME) == "https";
  address.with_token = parts.Origin() == given.Origin();
  address.encrypted = parts.Get(CURLUPART_SCHEME) == "https";
  return address;
}

void Prepare(CURL* curl, const Address& address, const curl_slist* headers, Transfer* transfer,
             char* error_text) {
  const HttpOptions& options = transfer->options;
  curl_easy_reset(curl);  // keeps the connection
  curl_easy_setopt(curl, CURLOPT_URL, address.url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "lockstep");
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error_text);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, kMostRedirects);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  // What began encrypted stays so.
  curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, address.secure ? "https" : "http,https");
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_timeout_ms));
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 512L << 10);
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  if (address.loopback) curl_easy_setopt(curl, CURLOPT_PROXY, "");
  if (!options.token.empty() && address.with_token) {
    curl_easy_setopt(curl, CURLOPT_UNRESTRICTED_AUTH, 0L);  // to this host only
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, options.token.c_str());
    // A proxy would see the token.
    if (!address.encrypted) curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
  }
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, TakeBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, transfer);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, TakeHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, WatchProgress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, transfer);
}

}  // namespace

StatusOr<HttpPlace> ParseHttpUrl(const char* flag, const std::string& url) {
  const UrlParts parts(url);
  const std::string scheme = parts.good() ? parts.Get(CURLUPART_SCHEME) : "";
  if ((scheme != "http" && scheme != "https") || parts.Get(CURLUPART_HOST).empty())
    return UsageError("%s '%s': is no URL; give http://HOST:PORT/PATH or https://...", flag, url);
  if (!parts.Get(CURLUPART_USER).empty() || !parts.Get(CURLUPART_PASSWORD).empty())
    return UsageError("%s: a URL with a user's name or password would be shown in messages", flag);
  if (!parts.Get(CURLUPART_FRAGMENT).empty())
    return UsageError("%s '%s': leave out the part behind '#'", flag, url);
  HttpPlace place;
  place.scheme = scheme;
  place.host = parts.Get(CURLUPART_HOST);
  place.query = parts.Get(CURLUPART_QUERY);
  if (!place.query.empty()) place.query = "?" + place.query;
  std::string path = parts.Get(CURLUPART_PATH);
  if (path.ends_with(".gguf")) {
    place.file = path.substr(path.rfind('/') + 1);
    path.resize(path.rfind('/'));
  }
  while (!path.empty() && path.back() == '/') path.pop_back();
  const std::string port = parts.Get(CURLUPART_PORT);
  place.directory = scheme + "://" + place.host + (port.empty() ? "" : ":" + port) + path;
  return place;
}

// Handles of curl, each of which keeps its connection open for the next request.
class HttpClient::Connections {
 public:
  explicit Connections(int most) : free_(most) {}
  ~Connections() {
    for (CURL* handle : idle_) curl_easy_cleanup(handle);
  }

  CURL* Take() {
    std::unique_lock lock(mutex_);
    available_.wait(lock, [this] { return free_ > 0; });
    --free_;
    if (idle_.empty()) return curl_easy_init();
    CURL* handle = idle_.back();
    idle_.pop_back();
    return handle;
  }
  void Return(CURL* handle) {
    const std::lock_guard lock(mutex_);
    ++free_;
    if (handle != nullptr) idle_.push_back(handle);
    available_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable available_;
  int free_;
  std::vector<CURL*> idle_;
};

struct HttpClient::Outcome {
  Status status = OkStatus();
  bool may_pass = false;
  bool at_once = false;  // the next try need not wait
  bool absent = false;
  uint64_t bytes = 0;
  uint64_t size_bytes = 0;
  std::string etag, media_type;
  bool strided = false;
  int64_t retry_after_ms = 0;
};

struct HttpClient::Patience {
  int tries = 0;
  int failed = 0;
  int64_t wait_ms = 0;
};

HttpClient::HttpClient(HttpOptions options) : options_(std::move(options)) {
  static const bool ready = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  LOCKSTEP_CHECK(ready && options_.connections > 0 && options_.tries > 0);
  connections_ = std::make_unique<Connections>(options_.connections);
}

HttpClient::~HttpClient() = default;

HttpClient::Outcome HttpClient::Ask(HttpTarget* target, const HttpRequest& request) {
  Outcome outcome;
  HttpAnswer answer(request);
  char error_text[CURL_ERROR_SIZE] = "";
  CURL* const curl = connections_->Take();
  // Only now: the wait for a connection is no stall, and a redirect may have expired during it.
  Transfer transfer{answer, options_};
  const Address address = AddressOf(target, request);
  // curl's own option knows ranges of bytes alone.
  curl_slist* lines = curl_slist_append(nullptr, ("Range: " + RangeText(request)).c_str());
  if (lines != nullptr) {  // lockstep files know that, others ignore it
    const std::string wants = std::string(kWantDigestHeader) + ": " + kDigestName;
    (void)curl_slist_append(lines, wants.c_str());
  }
  const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(lines,
                                                                            curl_slist_free_all);
  CURLcode code = CURLE_OUT_OF_MEMORY;
  std::string reached;
  if (curl != nullptr && headers != nullptr) {
    Prepare(curl, address, headers.get(), &transfer, error_text);
    code = curl_easy_perform(curl);
    const char* effective = nullptr;
    if (curl_easy_getinfo(curl, CURLINFO_EFFECTIVE_URL, &effective) == CURLE_OK && effective)
      reached = effective;
  }
  connections_->Return(curl);
  received_ += answer.bytes();
  if (transfer.stopped) {
    outcome.status = InterruptedError();
    return outcome;
  }
  std::string broken = error_text[0] != '\0' ? error_text : curl_easy_strerror(code);
  if (transfer.stalled)
    broken = absl::StrFormat("nothing came for %d s", options_.stall_timeout_ms / 1000);
  // A callback that ends the transfer makes it fail; what it found is the reason.
  const bool ended = code == CURLE_OK;
  outcome.status = answer.End(ended, ended ? "" : broken);
  outcome.may_pass = answer.may_pass() && (ended || code == CURLE_WRITE_ERROR || MayPass(code));
  outcome.absent = answer.absent();
  outcome.bytes = answer.usable_bytes();
  outcome.size_bytes = answer.size_bytes();
  outcome.etag = answer.etag();
  outcome.media_type = answer.media_type();
  outcome.strided = answer.offers_strided();
  outcome.retry_after_ms = answer.retry_after_ms();
  const std::lock_guard lock(target->mutex);
  if (outcome.status.ok()) {
    // The redirect's target is asked directly from now on, unless another request has found a newer
    // one meanwhile.
    const bool newest = address.url == target->url || address.url == target->direct;
    if (newest && !reached.empty() && reached != target->url) target->direct = reached;
  } else if (address.url != target->url && answer.status() >= 400) {
    // The redirect may have been for a time only. Of several requests that find this out together
    // each asks again; none of them takes away what another has found since.
    if (target->direct == address.url) target->direct.clear();
    outcome.at_once = !outcome.may_pass;
    outcome.may_pass = true;
  }
  return outcome;
}

Status HttpClient::Wait(int64_t ms) const {
  const Deadline deadline = Deadline::After(ms);
  while (!deadline.Passed()) {
    if (options_.stop && options_.stop()) return InterruptedError();
    std::this_thread::sleep_for(
        std::chrono::milliseconds(std::min<int64_t>(20, deadline.RemainingMs())));
  }
  return OkStatus();
}

Status HttpClient::BePatient(Patience* patience, const Outcome& outcome) const {
  if (!outcome.may_pass) return outcome.status;
  if (outcome.bytes >= kProgressBytes) *patience = {patience->tries};
  if (++patience->failed >= patience->tries) {
    return MakeError(
        KindOf(outcome.status),
        absl::StrFormat(
            "%s; gave up after %d tries: see that the server runs and that this machine "
            "reaches it, then start again; what is written already is kept",
            MessageOf(outcome.status), patience->tries));
  }
  if (outcome.at_once) return OkStatus();
  patience->wait_ms = patience->failed == 1
                          ? options_.first_wait_ms
                          : std::min(options_.longest_wait_ms, 2 * patience->wait_ms);
  const int64_t wait_ms = std::max(patience->wait_ms, outcome.retry_after_ms);
  // Many connections fail together: one line is enough.
  int64_t told = told_ns_;
  const int64_t now = NowNs();
  if ((told == 0 || now - told > kTellEveryNs) && told_ns_.compare_exchange_strong(told, now))
    log::Warning("%s; trying again", MessageOf(outcome.status));
  return Wait(wait_ms);
}

StatusOr<HttpClient::Beginning> HttpClient::Begin(HttpTarget* target, std::span<std::byte> out,
                                                  bool patient, bool* lasting) {
  HttpRequest request;
  request.name = target->name;
  request.out = out;
  request.refused_remedy = options_.refused_remedy;
  Patience patience{patient ? options_.tries : std::min(options_.tries, kTriesAtFirst)};
  while (true) {
    const Outcome outcome = Ask(target, request);
    if (outcome.absent && !outcome.at_once) return Beginning{.absent = true};
    if (outcome.status.ok()) {
      target->size_bytes = outcome.size_bytes;
      target->etag = outcome.etag;
      target->strided = outcome.strided;
      return Beginning{false, outcome.bytes, outcome.media_type};
    }
    if (lasting != nullptr) *lasting = !outcome.may_pass;
    LOCKSTEP_RETURN_IF_ERROR(BePatient(&patience, outcome));
  }
}

Status HttpClient::Read(HttpTarget* target, uint64_t offset, std::span<std::byte> out) {
  HttpRequest request;
  request.offset = offset;
  request.out = out;
  return AskAll(target, std::move(request));
}

Status HttpClient::ReadStrided(HttpTarget* target, const StridedRange& range,
                               std::span<std::byte> out) {
  LOCKSTEP_CHECK(target->strided && out.size() == range.total());
  HttpRequest request;
  request.offset = range.offset;
  request.out = out;
  request.piece_bytes = range.bytes;
  request.stride = range.stride;
  return AskAll(target, std::move(request));
}

Status HttpClient::AskAll(HttpTarget* target, HttpRequest request) {
  request.name = target->name;
  request.size_bytes = target->size_bytes;
  request.etag = target->etag;
  request.refused_remedy = options_.refused_remedy;
  Patience patience{options_.tries};
  while (!request.out.empty()) {
    Outcome outcome = Ask(target, request);
    // What came before the connection broke need not come again, but for a piece that it broke.
    const bool strided = request.piece_bytes > 0;
    const uint64_t unit = strided ? request.piece_bytes : 1;
    const uint64_t done = outcome.bytes / unit;
    outcome.bytes = done * unit;
    request.offset += done * (strided ? request.stride : 1);
    request.out = request.out.subspan(outcome.bytes);
    if (outcome.status.ok()) continue;
    LOCKSTEP_RETURN_IF_ERROR(BePatient(&patience, outcome));
  }
  return OkStatus();
}

}  // namespace lockstep
