#include "tests/runtime/kernels/cuda_emulation/fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__x86_64__)
// Saves what a function must keep on the stack, the stack pointer in *from, and goes on where `to`
// was saved. swapcontext does the same, and asks the system for the signal mask every time.
extern "C" void EmulationSwitch(void** from, void* to);
asm(R"(
.text
.globl EmulationSwitch
.type EmulationSwitch, @function
EmulationSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size EmulationSwitch, .-EmulationSwitch
)");
#endif

namespace emulation {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 * 1024;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::abort();
}

#if defined(__x86_64__)
class Context {
 public:
  void Begin(std::byte* stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // where a call would have left the alignment that functions expect
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    at_ = top;
  }
  void SwitchTo(Context& other) { EmulationSwitch(&at_, other.at_); }

 private:
  void* at_ = nullptr;
};
#else
class Context {
 public:
  void Begin(std::byte* stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void SwitchTo(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_ = {};
};
#endif

enum class State { kReady, kWaitsForBlock, kWaitsForWarp, kEnded };

struct Fiber {
  Context context;
  State state = State::kReady;
  std::unique_ptr<std::byte[]> stack = std::make_unique<std::byte[]>(kStackBytes);
};

// One block at a time.
Context scheduler;
std::vector<Fiber> fibers;  // kept from one block to the next
int thread_count = 0;
int current = 0;
const std::function<void()>* body_of_threads = nullptr;

void Enter() {
  (*body_of_threads)();
  fibers[static_cast<size_t>(current)].state = State::kEnded;
  fibers[static_cast<size_t>(current)].context.SwitchTo(scheduler);
}

// Threads [begin, end) go on if all of them wait.
void Wait(State waiting, int begin, int end) {
  const int self = current;
  fibers[static_cast<size_t>(self)].state = waiting;
  const auto first = fibers.begin() + begin, last = fibers.begin() + end;
  if (std::all_of(first, last, [&](const Fiber& fiber) { return fiber.state == waiting; })) {
    for (auto fiber = first; fiber != last; ++fiber) fiber->state = State::kReady;
    return;
  }
  fibers[static_cast<size_t>(self)].context.SwitchTo(scheduler);
}

}  // namespace

void RunThreads(int threads, bool descending, const std::function<void()>& body) {
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
  thread_count = threads;
  body_of_threads = &body;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[static_cast<size_t>(i)];
    fiber.state = State::kReady;
    fiber.context.Begin(fiber.stack.get(), Enter);
  }
  for (int left = threads; left > 0;) {
    bool progress = false;
    for (int turn = 0; turn < threads; ++turn) {
      current = descending ? threads - 1 - turn : turn;
      Fiber& fiber = fibers[static_cast<size_t>(current)];
      if (fiber.state != State::kReady) continue;
      progress = true;
      scheduler.SwitchTo(fiber.context);
      if (fiber.state == State::kEnded) --left;
    }
    if (!progress) Die("threads wait for others that never come to the same barrier");
  }
}

int CurrentThread() { return current; }

void WaitForBlock() { Wait(State::kWaitsForBlock, 0, thread_count); }

void WaitForWarp() {
  const int begin = current / kWarp * kWarp;
  Wait(State::kWaitsForWarp, begin, std::min(begin + kWarp, thread_count));
}

}  // namespace emulation
