// What clients are told about the model.
#pragma once

#include <cstdint>
#include <string>

namespace lockstep {

struct ServedModel {
  std::string name;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;
  int64_t max_running = 0;
  int ranks = 1;
};

}  // namespace lockstep
