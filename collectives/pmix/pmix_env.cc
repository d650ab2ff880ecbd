// mpirun's own channel between its processes (PMIx): carries rank 0's addresses and the session's
// secret, so that `mpirun -H a,b lockstep ...` needs no configuration. Its calls wait without
// deadlines, so they run in a thread of their own that is abandoned when the time is up.
#include <pmix.h>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "collectives/rendezvous.h"

namespace lockstep {
namespace {

constexpr char kKey[] = "lockstep.rendezvous";

Status Failed(const char* what, pmix_status_t code) {
  return InternalError("PMIx: %s failed: %s; set --rendezvous host:port instead", what,
                       PMIx_Error_string(code));
}

// Runs `work` in a thread; when it does not end in time the thread is left behind with what it
// needs.
Status WithDeadline(const char* what, int64_t timeout_ms, std::function<Status()> work) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable done_changed;
    bool done = false;
    Status status;
  };
  auto shared = std::make_shared<Shared>();
  std::thread([shared, work = std::move(work)] {
    const Status status = work();
    std::lock_guard lock(shared->mutex);
    shared->status = status;
    shared->done = true;
    shared->done_changed.notify_all();
  }).detach();
  std::unique_lock lock(shared->mutex);
  if (!shared->done_changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                     [&] { return shared->done; })) {
    return PeerLostError(
        "mpirun did not answer within %d ms while %s: another rank did not start lockstep, or "
        "mpirun "
        "is stuck; see --start-timeout-ms",
        timeout_ms, what);
  }
  return shared->status;
}

struct Session {
  pmix_proc_t self{};
};

Status PutText(const std::string& text) {
  pmix_value_t value;
  PMIX_VALUE_CONSTRUCT(&value);
  value.type = PMIX_STRING;
  value.data.string = strdup(text.c_str());
  pmix_status_t code = PMIx_Put(PMIX_GLOBAL, kKey, &value);
  PMIX_VALUE_DESTRUCT(&value);
  if (code != PMIX_SUCCESS) return Failed("publishing rank 0's address", code);
  code = PMIx_Commit();
  return code == PMIX_SUCCESS ? OkStatus() : Failed("publishing rank 0's address", code);
}

Status Fence(const Session& session) {
  pmix_proc_t all;
  PMIX_LOAD_PROCID(&all, session.self.nspace, PMIX_RANK_WILDCARD);
  bool collect = true;
  pmix_info_t info;
  PMIX_INFO_CONSTRUCT(&info);
  PMIX_INFO_LOAD(&info, PMIX_COLLECT_DATA, &collect, PMIX_BOOL);
  const pmix_status_t code = PMIx_Fence(&all, 1, &info, 1);
  PMIX_INFO_DESTRUCT(&info);
  return code == PMIX_SUCCESS ? OkStatus() : Failed("the fence of all ranks", code);
}

Status GetText(const Session& session, std::string* text) {
  pmix_proc_t zero;
  PMIX_LOAD_PROCID(&zero, session.self.nspace, 0);
  pmix_value_t* value = nullptr;
  const pmix_status_t code = PMIx_Get(&zero, kKey, nullptr, 0, &value);
  if (code != PMIX_SUCCESS) return Failed("reading rank 0's address", code);
  const bool good = value->type == PMIX_STRING && value->data.string != nullptr;
  if (good) *text = value->data.string;
  PMIX_VALUE_RELEASE(value);
  return good ? OkStatus() : InternalError("PMIx: rank 0 published no text");
}

// In: rank 0's text. Out: the same on every rank.
Status Exchange(const Session& session, std::string* text) {
  if (session.self.rank == 0) LOCKSTEP_RETURN_IF_ERROR(PutText(*text));
  LOCKSTEP_RETURN_IF_ERROR(Fence(session));
  return session.self.rank == 0 ? OkStatus() : GetText(session, text);
}

class PmixManager final : public ProcessManager {
 public:
  explicit PmixManager(std::shared_ptr<Session> session) : session_(std::move(session)) {}

  StatusOr<std::string> ShareFromRankZero(const std::string& text, int64_t timeout_ms) override {
    auto result = std::make_shared<std::string>(text);
    const auto share = [session = session_, result] { return Exchange(*session, result.get()); };
    LOCKSTEP_RETURN_IF_ERROR(
        WithDeadline("the ranks exchanged their addresses", timeout_ms, share));
    return *result;
  }

  void Finish() override {
    (void)WithDeadline("finishing", 2'000, [] {
      const pmix_status_t code = PMIx_Finalize(nullptr, 0);
      return code == PMIX_SUCCESS ? OkStatus() : Failed("finishing", code);
    });
  }

 private:
  std::shared_ptr<Session> session_;
};

}  // namespace

StatusOr<std::unique_ptr<ProcessManager>> ConnectProcessManager(int64_t timeout_ms) {
  auto session = std::make_shared<Session>();
  LOCKSTEP_RETURN_IF_ERROR(WithDeadline("connecting to it", timeout_ms, [session] {
    const pmix_status_t code = PMIx_Init(&session->self, nullptr, 0);
    return code == PMIX_SUCCESS ? OkStatus() : Failed("connecting to mpirun", code);
  }));
  return std::make_unique<PmixManager>(std::move(session));
}

}  // namespace lockstep
