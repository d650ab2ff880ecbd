// lockstep serve: the model behind HTTP and gRPC until SIGTERM or Ctrl-C.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/process.h"
#include "launcher/world.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine/circuit_breaker.h"
#include "runtime/engine/cluster_watch.h"
#include "runtime/serve/call.h"
#include "runtime/serve/grpc_server.h"
#include "runtime/serve/http_api.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

std::string ModelName(const Options& options) {
  if (!options.served_model_name.empty()) return options.served_model_name;
  std::filesystem::path path(options.model);
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

// A port in use should be told before a large model is loaded, not after.
Status CheckPortEarly(const Options& options, const char* what, int64_t port, const char* flag) {
  if (port == 0 || !WillBeRankZero(options)) return OkStatus();
  const StatusOr<UniqueFd> probe = ListenTcp({options.host, static_cast<int>(port)});
  if (probe.ok()) return OkStatus();
  return UsageError(
      "%s cannot listen on %s port %d: the port is in use, or the address is not this machine's; "
      "choose another with %s (0 picks a free one) or --host",
      what, options.host, port, flag);
}

TlsFiles TlsOf(const Options& options) { return {options.tls_cert, options.tls_key}; }

// The keys of --api-key-file (null: none). Addresses that others reach must have them, or TLS.
StatusOr<std::unique_ptr<ApiKeys>> LoadKeys(const Options& options) {
  if (TlsOf(options).given())
    LOCKSTEP_RETURN_IF_ERROR(TlsCertificate::Load(TlsOf(options)).status());
  if (!options.api_key_file.empty()) return ApiKeys::Load(options.api_key_file);
  if (IsLoopback(options.host) || TlsOf(options).given()) return std::unique_ptr<ApiKeys>();
  return UsageError(
      "--host %s can be reached from other machines: give --api-key-file FILE, in which a line is "
      "a name and the SHA-256 of a key (K=$(openssl rand -hex 24); echo \"me $(printf %%s \"$K\" | "
      "sha256sum | cut -c-64)\" > FILE; echo \"$K\"), or --tls-cert and --tls-key, or --host "
      "127.0.0.1",
      options.host);
}

void WarnOfOpenDoors(const Options& options) {
  if (IsLoopback(options.host)) return;
  if (!TlsOf(options).given()) {
    log::Warning("serving on %s without encryption: who can listen on the way reads keys and text",
                 options.host);
  }
  if (options.api_key_file.empty())
    log::Warning("serving on %s without keys: whoever reaches it may use it", options.host);
}

void PrintReady(const ServedModel& model, int port, int grpc_port) {
  const nlohmann::ordered_json json = {{"ready", true},
                                       {"port", port},
                                       {"grpc_port", grpc_port},
                                       {"model", model.name},
                                       {"ranks", model.ranks}};
  std::printf("%s\n",
              json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

// Both ends of the engine.
struct Ends {
  std::unique_ptr<GrpcServer> grpc;
  std::unique_ptr<HttpApi> http;
};

StatusOr<Ends> StartEnds(const Options& options, const ServedModel& model, const ModelText& text,
                         Access& access, Engine& engine, const ClusterWatch& watch) {
  Ends ends;
  GrpcServerOptions grpc;
  grpc.host = options.host;
  grpc.port = options.grpc_port;
  grpc.tls = TlsOf(options);
  LOCKSTEP_ASSIGN_OR_RETURN(ends.grpc, StartGrpcServer(grpc, model, text, &access, engine));
  HttpApiOptions http;
  http.host = options.host;
  http.port = options.port;
  http.cluster = [&watch] { return watch.View(); };
  http.tls = TlsOf(options);
  LOCKSTEP_ASSIGN_OR_RETURN(ends.http, StartHttpApi(http, model, text, &access, engine));
  return ends;
}

constexpr auto kLookAgain = std::chrono::milliseconds(50);
// How long clients are asked to wait while lost ranks start, and read their weights, once more.
constexpr int64_t kRetryWhileFormingS = 10;

CircuitOptions CircuitOf(const Options& options) {
  return {.failures = options.circuit_failures,
          .window_ms = options.circuit_window_ms,
          .first_wait_ms = options.circuit_wait_ms,
          .longest_wait_ms = options.circuit_longest_wait_ms};
}

// What clients are told while the circuit is open.
Status Refusal(const CircuitBreaker& breaker, const Options& options, const Status& lost) {
  const int64_t seconds = (breaker.RemainingMs() + 999) / 1000;
  return WithRetryAfter(
      PeerLostError("the ranks were lost %d times within %.3g s and are not started again for %d s "
                    "(--circuit-failures, --circuit-wait-ms); the last time: %s",
                    breaker.failures(), static_cast<double>(options.circuit_window_ms) / 1000,
                    seconds, MessageOf(lost)),
      seconds);
}

// Returns when the service has to end: interrupted, or with the engine's failure. A step that ends
// closes the circuit.
Status WatchUntilTheEnd(const Engine& engine, CircuitBreaker& breaker, ClusterWatch& watch) {
  while (!Interrupted()) {
    LOCKSTEP_RETURN_IF_ERROR(engine.status());
    if (breaker.state() == CircuitBreaker::State::kHalfOpen && engine.Readiness().ok()) {
      breaker.Succeeded();
      watch.SetCircuitOpen(false);
    }
    std::this_thread::sleep_for(kLookAgain);
  }
  return InterruptedError();
}

// What the session knows of its ranks, until Reopen gives that up.
ClusterWatch::Source FactsOf(Session& session) {
  return [&session] {
    const std::vector<RankNews> news = session.membership().News();
    std::vector<RankFacts> ranks;
    for (const RankInfo& info : session.membership().ranks())
      ranks.push_back({info, news[static_cast<size_t>(info.rank)]});
    return ranks;
  };
}

// Forms groups of ranks again when some are lost, where --recover says so, as often as a circuit
// breaker lets it.
struct Mender {
  Session& session;
  TokenConstraints* const constraints;
  CircuitBreaker breaker{CircuitOf(session.options())};
  // Called again and again while the circuit is open, with what clients are to hear.
  std::function<void(const Status&)> refuse = [](const Status&) {};

  // After a loss: waits until a group may be formed, and forms it.
  Status Reopen(const Status& lost) {
    breaker.Failed();
    if (!breaker.MayTry()) {
      log::Warning("%s", MessageOf(Refusal(breaker, session.options(), lost)));
      session.GiveUp(lost);  // memory too, which nobody needs meanwhile
    }
    const bool waits = !breaker.MayTry();
    while (!breaker.MayTry()) {
      if (Interrupted()) return InterruptedError();
      refuse(Refusal(breaker, session.options(), lost));
      std::this_thread::sleep_for(kLookAgain);
    }
    if (waits) {
      refuse(WithRetryAfter(
          PeerLostError("the ranks are being started again; the last time: %s", MessageOf(lost)),
          kRetryWhileFormingS));
    }
    return session.Reopen(lost);
  }

  // MakeExecutor, which may read for long, through losses.
  StatusOr<std::unique_ptr<GroupExecutor>> MakeThroughLosses() {
    while (true) {
      StatusOr<std::unique_ptr<GroupExecutor>> made =
          MakeExecutor(session, constraints, /*keeps=*/true);
      if (made.ok()) return made;
      const Status end = session.FinalStatus(made.status());
      if (!session.CanReopen(end)) return end;
      LOCKSTEP_RETURN_IF_ERROR(Reopen(end));
    }
  }
};

// WatchUntilTheEnd through losses of ranks. Meanwhile requests are refused with the loss.
Status ServeThroughLosses(Mender& mender, Engine& engine, ClusterWatch& watch, GrpcServer& server,
                          std::unique_ptr<GroupExecutor>* executor) {
  Session& session = mender.session;
  mender.refuse = [&](const Status& refusal) {
    watch.SetCircuitOpen(true);
    engine.ExplainFailure(refusal);
  };
  while (true) {
    const Status end = WatchUntilTheEnd(engine, mender.breaker, watch);
    if (!session.CanReopen(end)) return end;
    const int64_t lost_ns = NowNs();
    server.SetServing(false);
    watch.SetSource({});
    executor->reset();
    LOCKSTEP_RETURN_IF_ERROR(mender.Reopen(end));
    LOCKSTEP_ASSIGN_OR_RETURN(*executor, mender.MakeThroughLosses());
    mender.breaker.Skip(NowNs() - lost_ns);
    engine.Resume(LimitsOf(session), executor->get());
    watch.SetSource(FactsOf(session));
    server.SetServing(true);
    log::Info("all ranks are there again: serving");
  }
}

Status ServeOnRankZero(const Options& options, const TextSession& opened, Access& access) {
  Session& session = *opened.session;
  const ModelText& text = *opened.text;
  TokenConstraints* const constraints = opened.constraints.get();
  if (!text.chat_warning.empty()) log::Warning("%s", text.chat_warning);
  Mender mender{session, constraints};
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<GroupExecutor> executor, mender.MakeThroughLosses());
  // A third of what makes an idle service count as not ready.
  const std::unique_ptr<Engine> engine =
      MakeEngine(session, text, executor.get(), Engine::kReadyMs / 3, constraints);
  const ServedModel model = {ModelName(options), session.model().limits().max_model_len,
                             session.model().config().vocab_size, options.max_num_seqs,
                             session.size()};
  ClusterWatch watch(*engine);
  watch.SetSource(FactsOf(session));
  StatusOr<Ends> ends = StartEnds(options, model, text, access, *engine, watch);
  if (!ends.ok()) {
    (void)engine->Stop(KindOf(ends.status()));
    return ends.status();
  }
  WarnOfOpenDoors(options);
  PrintReady(model, ends->http->port(), ends->grpc->port());
  Status end = ServeThroughLosses(mender, *engine, watch, *ends->grpc, &executor);
  ends->grpc->SetServing(false);
  // After a signal: was a lost rank its cause? What is known is told before anything takes time.
  end = session.FinalStatus(end);
  int64_t drained_ns = NowNs();
  if (KindOf(end) == ErrorKind::kInterrupted) {
    drained_ns += options.drain_timeout_ms * 1'000'000;
    log::Info("ending: no new requests, running ones have %.3g s",
              static_cast<double>(options.drain_timeout_ms) / 1000);
    engine->Drain(options.drain_timeout_ms);
    // A rank lost meanwhile outweighs the signal.
    if (const Status failed = engine->status(); !failed.ok()) end = session.FinalStatus(failed);
  }
  if (KindOf(end) != ErrorKind::kInterrupted) TellFinalError(end);
  const StatusOr<std::vector<uint64_t>> digests = engine->Stop(KindOf(end));
  // Answers are made, but may not be read yet: they have what is left of the time to end.
  const auto left_ms = [&] { return std::max<int64_t>((drained_ns - NowNs()) / 1'000'000, 500); };
  ends->http->Shutdown(left_ms());
  ends->grpc->Shutdown(left_ms());
  if (KindOf(end) != ErrorKind::kInterrupted || digests.ok()) return end;
  return digests.status();
}

}  // namespace

Status ServeCommand(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckServing(options));
  LOCKSTEP_RETURN_IF_ERROR(CheckPortEarly(options, "gRPC", options.grpc_port, "--grpc-port"));
  LOCKSTEP_RETURN_IF_ERROR(CheckPortEarly(options, "HTTP", options.port, "--port"));
  std::unique_ptr<ApiKeys> keys;
  if (WillBeRankZero(options)) {
    LOCKSTEP_ASSIGN_OR_RETURN(keys, LoadKeys(options));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened,
                            OpenTextSession(options, {.measure_memory = true}));
  Access access(keys.get());
  const InterruptScope scope;
  Session& session = *opened.session;
  return session.Close(session.rank() == 0
                           ? ServeOnRankZero(options, opened, access)
                           : WorkThroughLosses(session, options.drain_timeout_ms + kEndAtOnceMs,
                                               opened.constraints.get()));
}

}  // namespace lockstep
