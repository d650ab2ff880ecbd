#include "runtime/engine/rpc/grpc_stage_link.h"

#include <grpc/support/log.h>
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/strings/str_join.h"
#include "collectives/secret.h"
#include "lockstep/v1/pipeline.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kNonceBytes = sizeof(Challenge);
constexpr int kHandshakeMs = 10'000;
constexpr int kKeepaliveMs = 10'000;
constexpr int kLookMs = 20;
// Streams that have proven nothing yet; one more ends the first of them, so that strangers keep
// nobody out.
constexpr size_t kMostUnproven = 3;
// Pieces that may wait for the thread that computes; what comes beyond is left to gRPC's flow
// control, which stops the sender.
constexpr size_t kMostPieces = 8;
// Of what strangers may make a server hold: halves of messages, and threads.
constexpr size_t kMostHeldBytes = size_t{64} << 20;
constexpr int kMostThreads = 8;

// gRPC prints what it meets by itself; what matters is returned.
void LogQuietly(gpr_log_func_args* line) { log::Debug("gRPC: %s", std::string(line->message)); }

std::string RandomNonce() {
  const Challenge random = RandomChallenge();
  return {reinterpret_cast<const char*>(random.data()), random.size()};
}

// A path that carries nothing any more breaks the stream, on both ends, also while nothing is sent.
template <typename Set>
void SetKeepalive(const Set& set) {
  set(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 2 * kKeepaliveMs);
  set(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // any number
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kKeepaliveMs / 2);
}

// What the client ('c') or the server ('s') proves.
Proof ProofOf(const GrpcStageOptions& options, char speaker, const v1::StageHello& hello,
              const std::string& server_nonce) {
  const std::string text =
      absl::StrFormat("lockstep stage link %c %d %d ", speaker, hello.from(), hello.to()) +
      hello.nonce() + server_nonce;
  return options.sign(std::as_bytes(std::span(text)));
}

bool Holds(const std::string& given, const Proof& wanted) {
  Proof proof{};
  if (given.size() != proof.size()) return false;
  std::memcpy(proof.data(), given.data(), proof.size());
  return EqualProofs(proof, wanted);
}

std::string TextOf(const Proof& proof) {
  return {reinterpret_cast<const char*>(proof.data()), proof.size()};
}

// Ends a call that takes longer, as blocking reads and writes have no deadline of their own.
template <typename Context>
class CallLimit {
 public:
  CallLimit(Context* context, int64_t limit_ms) : shared_(std::make_shared<Shared>()) {
    shared_->context = context;
    alarm_.Set(std::chrono::system_clock::now() + milliseconds(limit_ms),
               [shared = shared_](bool passed) {
                 const std::lock_guard lock(shared->mutex);
                 if (passed && shared->context != nullptr) shared->context->TryCancel();
               });
  }
  ~CallLimit() {
    const std::lock_guard lock(shared_->mutex);
    shared_->context = nullptr;
  }

 private:
  struct Shared {
    std::mutex mutex;
    Context* context = nullptr;
  };
  std::shared_ptr<Shared> shared_;
  grpc::Alarm alarm_;
};

StageHeader HeaderOf(const v1::StageHeader& header) {
  return {static_cast<StageKind>(header.kind()),
          header.step(),
          header.part(),
          header.rows(),
          header.bytes(),
          header.digest()};
}

void ToProto(const StageHeader& header, v1::StageHeader* to) {
  to->set_kind(static_cast<uint32_t>(header.kind));
  to->set_step(header.step);
  to->set_part(header.part);
  to->set_rows(header.rows);
  to->set_bytes(header.bytes);
  to->set_digest(header.digest);
}

// What the stream of the stage before has brought.
struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<v1::StagePiece> pieces;
  bool connected = false;  // once: later streams are refused
  bool ended = false;
  bool stopping = false;
};

class PassService final : public v1::Pipeline::Service {
 public:
  PassService(const GrpcStageOptions& options, Inbox& inbox) : options_(options), inbox_(inbox) {}

  using Stream = grpc::ServerReaderWriter<v1::PassResponse, v1::PassRequest>;

  grpc::Status Pass(grpc::ServerContext* context, Stream* stream) override {
    if (!Admit(context, stream))
      return {grpc::StatusCode::UNAUTHENTICATED, "this is no stage of this session"};
    v1::PassRequest request;
    while (stream->Read(&request) && request.has_piece() &&
           Put(std::move(*request.mutable_piece()))) {
    }
    const std::lock_guard lock(inbox_.mutex);
    inbox_.ended = true;
    inbox_.changed.notify_all();
    return grpc::Status::OK;
  }

 private:
  bool Admit(grpc::ServerContext* context, Stream* stream) {
    const CallLimit limit(context, kHandshakeMs);
    const Unproven unproven(*this, context);
    v1::PassRequest request;
    if (!stream->Read(&request)) return false;
    const v1::StageHello hello = request.hello();  // empty if it is none
    if (hello.nonce().size() != kNonceBytes || options_.peers.from < 0 ||
        hello.from() != static_cast<uint32_t>(options_.peers.from) ||
        hello.to() != static_cast<uint32_t>(options_.peers.rank))
      return false;
    const std::string nonce = RandomNonce();
    v1::PassResponse response;
    response.set_nonce(nonce);
    response.set_proof(TextOf(ProofOf(options_, 's', hello, nonce)));
    if (!stream->Write(response) || !stream->Read(&request) ||
        !Holds(request.proof(), ProofOf(options_, 'c', hello, nonce)))
      return false;
    {
      const std::lock_guard lock(inbox_.mutex);
      if (std::exchange(inbox_.connected, true)) return false;
      inbox_.changed.notify_all();
    }
    response.Clear();
    response.set_accepted(true);
    return stream->Write(response);
  }

  // A stream's place among those that have proven nothing.
  class Unproven {
   public:
    Unproven(PassService& service, grpc::ServerContext* context)
        : service_(service), context_(context) {
      const std::lock_guard lock(service_.mutex_);
      if (service_.unproven_.size() >= kMostUnproven) {
        service_.unproven_.front()->TryCancel();
        service_.unproven_.pop_front();
      }
      service_.unproven_.push_back(context);
    }
    ~Unproven() {
      const std::lock_guard lock(service_.mutex_);
      std::erase(service_.unproven_, context_);
    }

   private:
    PassService& service_;
    grpc::ServerContext* const context_;
  };

  bool Put(v1::StagePiece piece) {
    std::unique_lock lock(inbox_.mutex);
    inbox_.changed.wait(lock,
                        [this] { return inbox_.stopping || inbox_.pieces.size() < kMostPieces; });
    if (inbox_.stopping) return false;
    inbox_.pieces.push_back(std::move(piece));
    inbox_.changed.notify_all();
    return true;
  }

  const GrpcStageOptions& options_;
  Inbox& inbox_;
  std::mutex mutex_;
  std::deque<grpc::ServerContext*> unproven_;  // the oldest first
};

class StreamingStageLink final : public GrpcStageLink {
 public:
  explicit StreamingStageLink(GrpcStageOptions options)
      : options_(std::move(options)), service_(options_, inbox_), outbox_(options_.peers) {}

  ~StreamingStageLink() override {
    if (context_ != nullptr) context_->TryCancel();  // ends a write that waits
    outbox_.Stop();
    if (stream_ != nullptr) (void)stream_->Finish();
    {
      const std::lock_guard lock(inbox_.mutex);
      inbox_.stopping = true;
    }
    inbox_.changed.notify_all();
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  const char* name() const override { return "grpc"; }
  const std::string& address() const override { return address_; }

  Status Listen();
  Status Connect(const std::string& next) override;

  Status Send(const StageHeader& header, std::span<const std::byte> bytes,
              Deadline deadline) override {
    return outbox_.Put(header, bytes, deadline);
  }
  Status Receive(const StageHeader& expected, Deadline deadline,
                 std::vector<std::byte>* bytes) override;

 private:
  const StagePeers& peers() const { return options_.peers; }
  // The stream to the next stage: both sides prove who they are.
  Status OpenStream(const std::string& next, Deadline deadline);
  // One try; *again if others may have kept this rank out.
  bool TryStream(bool* again);
  Status SendOne(const StageHeader& header, std::span<const std::byte> bytes);
  // Until `there` holds of the inbox, whose lock is held.
  template <typename There>
  Status Await(std::unique_lock<std::mutex>* lock, Deadline deadline, const There& there);
  Status TakePiece(Deadline deadline, v1::StagePiece* piece);

  const GrpcStageOptions options_;
  Inbox inbox_;
  PassService service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::unique_ptr<v1::Pipeline::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::PassRequest, v1::PassResponse>> stream_;
  v1::StagePiece piece_;
  StageOutbox outbox_;
};

Status StreamingStageLink::Listen() {
  if (peers().from < 0) return OkStatus();
  grpc::ServerBuilder builder;
  // Without this a second server would share the port silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
  grpc::ResourceQuota quota("stages");
  builder.SetResourceQuota(quota.Resize(kMostHeldBytes).SetMaxThreads(kMostThreads));
  builder.SetMaxReceiveMessageSize(static_cast<int>(2 * kPieceBytes));
  const auto is_v6 = [](const std::string& host) { return host.find(':') != std::string::npos; };
  std::vector<std::string> hosts;
  for (const std::string& host : options_.hosts) {
    if (is_v6(host) == is_v6(options_.hosts[0]))
      hosts.push_back(is_v6(host) ? "[" + host + "]" : host);
  }
  std::vector<int> ports(hosts.size(), 0);
  for (size_t i = 0; i < hosts.size(); ++i)
    builder.AddListeningPort(hosts[i] + ":0", grpc::InsecureServerCredentials(), &ports[i]);
  SetKeepalive([&](const char* name, int value) { builder.AddChannelArgument(name, value); });
  builder.RegisterService(&service_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || std::find(ports.begin(), ports.end(), 0) != ports.end()) {
    return UsageError(
        "gRPC cannot listen on %s for the stage before; choose another --interface, or "
        "--stage-link tcp",
        absl::StrJoin(hosts, ", "));
  }
  // gRPC tries them in turn.
  for (size_t i = 0; i < hosts.size(); ++i)
    address_ += absl::StrFormat("%s%s:%d", i == 0 ? "" : ",", hosts[i], ports[i]);
  address_ = (is_v6(options_.hosts[0]) ? "ipv6:" : "ipv4:") + address_;
  return OkStatus();
}

Status StreamingStageLink::Connect(const std::string& next) {
  const Deadline deadline = Deadline::After(options_.start_timeout_ms);
  if (peers().to >= 0) LOCKSTEP_RETURN_IF_ERROR(OpenStream(next, deadline));
  if (peers().from < 0) return OkStatus();
  std::unique_lock lock(inbox_.mutex);
  return Await(&lock, deadline, [this] { return inbox_.connected; });
}

Status StreamingStageLink::OpenStream(const std::string& next, Deadline deadline) {
  grpc::ChannelArguments arguments;
  // A name of the environment's for proxies is not meant for this.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  SetKeepalive([&](const char* name, int value) { arguments.SetInt(name, value); });
  const auto channel =
      grpc::CreateCustomChannel(next, grpc::InsecureChannelCredentials(), arguments);
  while (!channel->WaitForConnected(std::chrono::system_clock::now() + milliseconds(100))) {
    LOCKSTEP_RETURN_IF_ERROR(peers().health());
    if (deadline.Passed()) return BrokenBy(peers(), peers().to, "cannot be reached at " + next);
  }
  stub_ = v1::Pipeline::NewStub(channel);
  bool again = false;
  while (!TryStream(&again)) {
    LOCKSTEP_RETURN_IF_ERROR(peers().health());
    if (!again || deadline.Passed()) {
      return BrokenBy(peers(), peers().to,
                      "did not prove at " + next + " that it belongs to this session");
    }
    std::this_thread::sleep_for(milliseconds(kLookMs));
  }
  outbox_.Start([this](const StageHeader& header, std::span<const std::byte> bytes) {
    return SendOne(header, bytes);
  });
  return OkStatus();
}

bool StreamingStageLink::TryStream(bool* again) {
  context_ = std::make_unique<grpc::ClientContext>();
  const CallLimit limit(context_.get(), kHandshakeMs);
  stream_ = stub_->Pass(context_.get());
  v1::PassRequest request;
  v1::StageHello hello;
  hello.set_from(static_cast<uint32_t>(peers().rank));
  hello.set_to(static_cast<uint32_t>(peers().to));
  hello.set_nonce(RandomNonce());
  *request.mutable_hello() = hello;
  v1::PassResponse response;
  const bool answered = stream_->Write(request) && stream_->Read(&response);
  bool proven = answered && response.nonce().size() == kNonceBytes &&
                Holds(response.proof(), ProofOf(options_, 's', hello, response.nonce()));
  const bool lied = answered && !proven;
  if (proven) {
    request.set_proof(TextOf(ProofOf(options_, 'c', hello, response.nonce())));
    proven = stream_->Write(request) && stream_->Read(&response) && response.accepted();
  }
  if (proven) return true;
  if (lied) context_->TryCancel();  // else the other side has ended the stream, and says why
  const grpc::StatusCode code = stream_->Finish().error_code();
  stream_.reset();
  *again = !lied && code != grpc::StatusCode::UNAUTHENTICATED;
  return false;
}

// On the outbox's thread.
Status StreamingStageLink::SendOne(const StageHeader& header, std::span<const std::byte> bytes) {
  size_t offset = 0;
  do {
    const size_t count = std::min(kPieceBytes, bytes.size() - offset);
    v1::PassRequest request;
    v1::StagePiece* piece = request.mutable_piece();
    if (offset == 0) ToProto(header, piece->mutable_header());
    piece->set_data(bytes.data() + offset, count);
    if (!stream_->Write(request)) {
      if (outbox_.stopping()) return InternalError("the stage link has ended");
      return BrokenBy(peers(), peers().to, "closed the stream of the pipeline");
    }
    offset += count;
  } while (offset < bytes.size());
  return OkStatus();
}

template <typename There>
Status StreamingStageLink::Await(std::unique_lock<std::mutex>* lock, Deadline deadline,
                                 const There& there) {
  while (!there()) {
    if (inbox_.ended) {
      lock->unlock();
      return BrokenBy(peers(), peers().from, "closed the stream of the pipeline");
    }
    LOCKSTEP_RETURN_IF_ERROR(peers().health());
    if (deadline.Passed()) return TooLate(peers(), peers().from, "sent nothing that was expected");
    inbox_.changed.wait_for(*lock, milliseconds(kLookMs));
  }
  return OkStatus();
}

Status StreamingStageLink::TakePiece(Deadline deadline, v1::StagePiece* piece) {
  std::unique_lock lock(inbox_.mutex);
  LOCKSTEP_RETURN_IF_ERROR(Await(&lock, deadline, [this] { return !inbox_.pieces.empty(); }));
  *piece = std::move(inbox_.pieces.front());
  inbox_.pieces.pop_front();
  inbox_.changed.notify_all();
  return OkStatus();
}

Status StreamingStageLink::Receive(const StageHeader& expected, Deadline deadline,
                                   std::vector<std::byte>* bytes) {
  LOCKSTEP_RETURN_IF_ERROR(TakePiece(deadline, &piece_));
  const StageHeader header = HeaderOf(piece_.header());
  LOCKSTEP_RETURN_IF_ERROR(CheckHeader(peers(), header, expected));
  bytes->resize(header.bytes);
  size_t filled = 0;
  while (true) {
    const std::string& data = piece_.data();
    const size_t wanted = std::min(kPieceBytes, bytes->size() - filled);
    if (data.size() != wanted) {
      return WrongFrom(
          peers(), peers().from,
          InternalError("sent a piece of %d bytes, where %d are due", data.size(), wanted));
    }
    if (wanted > 0) std::memcpy(bytes->data() + filled, data.data(), wanted);
    filled += wanted;
    if (filled == bytes->size()) return CheckBytes(peers(), header, *bytes);
    LOCKSTEP_RETURN_IF_ERROR(TakePiece(deadline, &piece_));
  }
}

}  // namespace

StatusOr<std::unique_ptr<GrpcStageLink>> ListenForStage(GrpcStageOptions options) {
  gpr_set_log_function(LogQuietly);
  auto link = std::make_unique<StreamingStageLink>(std::move(options));
  LOCKSTEP_RETURN_IF_ERROR(link->Listen());
  return StatusOr<std::unique_ptr<GrpcStageLink>>(std::move(link));
}

}  // namespace lockstep
