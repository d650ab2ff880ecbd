// lockstep serve: the model behind gRPC until SIGTERM or Ctrl-C.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/process.h"
#include "launcher/world.h"
#include "runtime/base/log.h"
#include "runtime/serve/grpc_server.h"
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
Status CheckPortEarly(const Options& options) {
  if (options.grpc_port == 0 || !WillBeRankZero(options)) return OkStatus();
  const StatusOr<UniqueFd> probe = ListenTcp({options.host, static_cast<int>(options.grpc_port)});
  if (probe.ok()) return OkStatus();
  return UsageError(
      "gRPC cannot listen on %s port %d: the port is in use, or the address is not this machine's; "
      "choose another with --grpc-port (0 picks a free one) or --host",
      options.host, options.grpc_port);
}

void PrintReady(const ServedModel& model, int port) {
  const nlohmann::ordered_json json = {
      {"ready", true}, {"grpc_port", port}, {"model", model.name}, {"ranks", model.ranks}};
  std::printf("%s\n",
              json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

// Returns when the service has to end: interrupted, or with the engine's failure.
Status WatchUntilTheEnd(const Engine& engine) {
  while (!Interrupted()) {
    LOCKSTEP_RETURN_IF_ERROR(engine.status());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return InterruptedError();
}

// WatchUntilTheEnd through losses of ranks, where --recover mends them. Meanwhile requests are
// refused with the loss.
Status ServeThroughLosses(Session& session, Engine& engine, GrpcServer& server,
                          std::unique_ptr<TensorParallelExecutor>* executor) {
  while (true) {
    const Status end = WatchUntilTheEnd(engine);
    if (!session.CanReopen(end)) return end;
    server.SetServing(false);
    executor->reset();
    LOCKSTEP_RETURN_IF_ERROR(session.Reopen(end));
    LOCKSTEP_ASSIGN_OR_RETURN(*executor, MakeExecutor(session));
    engine.Resume(LimitsOf(session), executor->get());
    server.SetServing(true);
    log::Info("all ranks are there again: serving");
  }
}

Status ServeOnRankZero(const Options& options, Session& session, const ModelText& text) {
  if (!text.chat_warning.empty()) log::Warning("%s", text.chat_warning);
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<TensorParallelExecutor> executor,
                            MakeExecutor(session));
  const std::unique_ptr<Engine> engine = MakeEngine(session, text, executor.get());
  const ServedModel model = {ModelName(options), session.model().limits().max_model_len,
                             session.model().config().vocab_size, options.max_num_seqs,
                             session.size()};
  GrpcServerOptions serving;
  serving.host = options.host;
  serving.port = options.grpc_port;
  StatusOr<std::unique_ptr<GrpcServer>> server = StartGrpcServer(serving, model, text, *engine);
  if (!server.ok()) {
    (void)engine->Stop(KindOf(server.status()));
    return server.status();
  }
  if (!IsLoopback(options.host)) {
    log::Warning(
        "gRPC listens on %s: whoever reaches port %d can use the model, unencrypted and without a "
        "key; keep "
        "it behind a firewall or give --host 127.0.0.1",
        options.host, (*server)->port());
  }
  PrintReady(model, (*server)->port());
  Status end = ServeThroughLosses(session, *engine, **server, &executor);
  (*server)->SetServing(false);
  // After a signal: was a lost rank its cause? What is known is told before anything takes time.
  end = session.FinalStatus(end);
  if (KindOf(end) == ErrorKind::kInterrupted) {
    log::Info("ending: no new requests, running ones have %d s", kDrainMs / 1000);
    engine->Drain(kDrainMs);
    // A rank lost meanwhile outweighs the signal.
    if (const Status failed = engine->status(); !failed.ok()) end = session.FinalStatus(failed);
  }
  if (KindOf(end) != ErrorKind::kInterrupted) TellFinalError(end);
  const StatusOr<std::vector<uint64_t>> digests = engine->Stop(KindOf(end));
  // The answers' last words are written; what is still open now does not read.
  (*server)->Shutdown(500);
  if (KindOf(end) != ErrorKind::kInterrupted || digests.ok()) return end;
  return digests.status();
}

}  // namespace

Status ServeCommand(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckRecover(options));
  LOCKSTEP_RETURN_IF_ERROR(CheckPortEarly(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened, OpenTextSession(options));
  const InterruptScope scope;
  Session& session = *opened.session;
  return session.Close(session.rank() == 0 ? ServeOnRankZero(options, session, *opened.text)
                                           : WorkThroughLosses(session, kDrainMs + kEndAtOnceMs));
}

}  // namespace lockstep
