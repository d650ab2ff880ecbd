// What a cluster is made of, and how well programs use it. Figures carry where they are from, so
// that a prediction can say what it rests on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lockstep::planner {

struct Figure {
  double value = 0;    // 0: not known
  std::string source;  // "NVIDIA's datasheet", "measured by lockstep doctor"

  bool known() const { return value > 0; }
};

struct Node {
  std::string name;
  std::string family;    // machines whose programs reach like parts of their speed
  Figure memory_gib;     // what a program may take of the memory that is read at full speed
  Figure gb_per_s;       // of that memory
  Figure slow_gib;       // beside it: a host's memory behind a card; 0: none
  Figure slow_gb_per_s;  // at which the processor reads that
  Figure tops;           // 10^12 operations a second, of products
  Figure watts;          // under load
};

struct Link {
  std::string name;
  Figure latency_us;  // one way, of a message of a few KB
  Figure gb_per_s;    // one way
};

// How a program that was measured uses a family of machines: a constant for reading and one for
// arithmetic; and what it does, as its documentation or source says.
struct Engine {
  std::string name;
  std::string family;
  std::vector<std::string> ways;  // "single", "pipeline", "tensor"; empty: all of them
  Figure read_share;              // of the memory's bandwidth, while decoding
  Figure arithmetic_share;        // of the peak, in prompts; 0: not known
  // Whether the shares are of what `lockstep bench` measured, and not of datasheets' figures.
  bool of_measured = false;
  bool ring = false;        // sums go around a ring; otherwise each rank writes to all at once
  std::string ring_source;  // empty where it makes no sums
  bool in_turns = false;    // pipeline: several requests, or parts of a prompt, fill the stages
  // What it does unless told otherwise.
  std::string cache = "f32";  // of keys and values, a name that CacheTypeOf knows
  std::string wire = "f32";   // of sums between ranks: f32, bf16 or int8
  int64_t chunk = 256;        // most rows of a prompt in one step
};

struct Hardware {
  std::string name;
  int nodes = 1;
  Node node;  // all are alike
  Link link;  // between any two of them
  Figure price_usd;
  Figure cloud_usd_per_month;  // what is rented instead of so many nodes:
  int cloud_nodes = 1;
  Figure usd_per_kwh;
  Figure hours_per_day;  // under load
};

}  // namespace lockstep::planner
