#include "transport/window.h"

#include <utility>

#include "runtime/base/os.h"

namespace lockstep {
namespace {

constexpr size_t kSmallestPage = 4096;

// Faults every page in now, and not in the first step.
void TouchToRead(const std::byte* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kSmallestPage) {
    (void)*static_cast<const volatile std::byte*>(memory + i);
  }
}
void TouchToWrite(std::byte* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kSmallestPage) {
    *static_cast<volatile std::byte*>(memory + i) = std::byte{0};
  }
}

}  // namespace

Window::Window(Window&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      descriptor_(std::move(other.descriptor_)) {}

Window& Window::operator=(Window&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(size_, other.size_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

Window::~Window() {
  if (memory_ != nullptr) os::FreePages(memory_, size_);
}

StatusOr<Window> Window::Allocate(size_t bytes) {
  if (bytes == 0) return Window();
  auto* memory = static_cast<std::byte*>(os::AllocatePages(bytes));
  if (memory == nullptr) {
    return InternalError("no memory for an exchange window of %d KiB", bytes >> 10);
  }
  TouchToWrite(memory, bytes);
  return Window(memory, bytes, UniqueFd());
}

StatusOr<Window> Window::Share(size_t bytes) {
  if (bytes == 0) return Window();
  LOCKSTEP_ASSIGN_OR_RETURN(const int descriptor, os::CreateSharedMemory(bytes));
  UniqueFd owner(descriptor);
  LOCKSTEP_ASSIGN_OR_RETURN(void* memory, os::MapSharedMemory(descriptor, bytes, true));
  os::ForbidFurtherWriters(descriptor);
  TouchToWrite(static_cast<std::byte*>(memory), bytes);
  return Window(static_cast<std::byte*>(memory), bytes, std::move(owner));
}

StatusOr<Window> Window::Map(UniqueFd descriptor, size_t bytes) {
  if (bytes == 0) return Window();
  LOCKSTEP_ASSIGN_OR_RETURN(void* memory, os::MapSharedMemory(descriptor.get(), bytes, false));
  TouchToRead(static_cast<std::byte*>(memory), bytes);
  return Window(static_cast<std::byte*>(memory), bytes, std::move(descriptor));
}

}  // namespace lockstep
