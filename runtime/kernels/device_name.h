// What a rank computes on, as --device and a node's key `device` name it.
#pragma once

#include <string>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep::kernels {

struct DeviceName {
  bool is_cuda = false;  // else the processor
  int ordinal = 0;       // of a GPU, as CUDA numbers them

  std::string Text() const;  // "cpu", "cuda:1"
};

// "cpu" or "cuda:N". `where` says in the error where the text stood: "--device".
StatusOr<DeviceName> ParseDevice(std::string_view text, std::string_view where);
// The device of one of `ranks` ranks from "cuda:0", for all of them, or "cuda:0,cuda:1,cpu", one
// each.
StatusOr<DeviceName> DeviceOfRank(std::string_view text, int rank, int ranks,
                                  std::string_view where);

}  // namespace lockstep::kernels
