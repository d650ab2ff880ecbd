// The memory of one rank's window, or of a peer's as it is seen here: allocated once, whole pages,
// zeroed, touched before the first exchange.
#pragma once

#include <cstddef>
#include <span>

#include "runtime/base/status.h"
#include "transport/socket.h"

namespace lockstep {

class Window {
 public:
  Window() = default;
  Window(Window&& other) noexcept;
  Window& operator=(Window&& other) noexcept;
  ~Window();

  // Memory of this process alone.
  static StatusOr<Window> Allocate(size_t bytes);
  // Memory that processes which are given the descriptor can read, but not write.
  static StatusOr<Window> Share(size_t bytes);
  // Another process's memory, to read only: of its Share(), as long as the own.
  static StatusOr<Window> Map(UniqueFd descriptor, size_t bytes);

  std::span<std::byte> bytes() const { return {memory_, size_}; }
  // Of Share() and Map().
  int descriptor() const { return descriptor_.get(); }

 private:
  Window(std::byte* memory, size_t size, UniqueFd descriptor)
      : memory_(memory), size_(size), descriptor_(std::move(descriptor)) {}

  std::byte* memory_ = nullptr;
  size_t size_ = 0;
  UniqueFd descriptor_;
};

}  // namespace lockstep
