#include "collectives/nccl/nccl_communicator.h"

#include <poll.h>

#include <chrono>
#include <future>
#include <thread>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep::nccl {
namespace {

// Ranks of one machine wait for each other when they finalize.
constexpr int64_t kFinalizeMs = 5'000;
// An abort waits for the kernels on the GPU, which look for it all the time.
constexpr int64_t kEndMs = 5'000;

}  // namespace

Communicator::Communicator(const Library& library, int device)
    : library_(library), device_(device), handle_(std::make_shared<ncclComm_t>(nullptr)) {}

Communicator::~Communicator() { Abort(); }

ncclResult_t Communicator::Join(const ncclUniqueId& id, int rank, int size) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return library_.comm_init_rank_config(handle_.get(), size, id, rank, &config);
}

ncclResult_t Communicator::State() const {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = library_.comm_get_async_error(get(), &state);
  return asked == ncclSuccess ? state : asked;
}

void Communicator::Abort() {
  if (!ended_ && get() != nullptr) End(library_.comm_abort);
}

void Communicator::Finish(const Lifeline& lifeline) {
  if (ended_ || get() == nullptr) return;
  ncclResult_t state = library_.comm_finalize(get());
  const Deadline deadline = Deadline::After(kFinalizeMs);
  while (state == ncclInProgress && !lifeline.broken() && !deadline.Passed()) {
    (void)poll(nullptr, 0, 1);
    state = State();
  }
  state == ncclSuccess ? End(library_.comm_destroy) : Abort();
}

// NCCL returns from both when the GPU has ended its kernels and NCCL its own threads, which a
// broken GPU never does, nor NCCL in some cases (issues 549, 863 and 1777 of NVIDIA/nccl): so it is
// called by a thread that can be left behind. Either frees the communicator; nothing may ask it for
// its state afterwards, whatever was returned.
void Communicator::End(decltype(&::ncclCommAbort) how) {
  ended_ = true;
  const auto done = std::make_shared<std::promise<void>>();
  std::future<void> ended = done->get_future();
  std::thread([&library = library_, device = device_, handle = handle_, how, done] {
    // Or NCCL, which restores the thread's device, would open GPU 0 for this process.
    (void)library.set_device(device);
    (void)how(*handle);
    done->set_value();
  }).detach();
  if (ended.wait_for(std::chrono::milliseconds(kEndMs)) == std::future_status::ready) return;
  log::Warning(
      "NCCL does not end its communicator on GPU %d within %d ms; see 'nvidia-smi' and 'dmesg'",
      device_, kEndMs);
}

}  // namespace lockstep::nccl
