// Every knob of lockstep, once: its default, its meaning, its bounds. Command-line flags and the
// keys of the cluster YAML are both read through OptionTable(), so the two can never drift apart.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct Options {
  // Model and numerics.
  std::string model;
  std::string kernels = "auto";
  std::string device = "cpu";
  bool mixed_kernels = false;
  bool exact = false;
  std::string kv_cache_dtype = "auto";
  std::string chat_template = "auto";
  // Group of ranks.
  std::string mode = "tensor";
  int64_t stages = 0;  // of a pipeline; 0: as many as ranks
  std::string stage_link = "grpc";
  int64_t ranks = 0;  // 0: as the launcher, the YAML or a single process says
  int64_t rank = -1;
  std::string collective = "tcp";
  std::string wire = "f32";
  std::string sum_order = "rank";
  int64_t gather_sum_bytes = -1;  // -1: UsualSumLimits
  int64_t direct_sum_bytes = -1;  // the same
  int64_t overlap_rows = -1;      // -1: as where the ranks are says
  std::string rdma_mode = "auto";
  std::vector<double> shares;
  int64_t threads = 0;
  std::string config;
  std::string interface;
  std::string secret_file;
  std::string rendezvous;  // host:port where rank 0 listens
  int64_t start_timeout_ms = 60'000;
  int64_t exchange_timeout_ms = 30'000;
  int64_t peer_timeout_ms = 10'000;
  bool verify_exchanges = false;
  bool recover = false;
  int64_t circuit_failures = 3;
  int64_t circuit_window_ms = 300'000;
  int64_t circuit_wait_ms = 10'000;
  int64_t circuit_longest_wait_ms = 60'000;
  // `up`, `down`, `status`.
  std::string ssh = "ssh";
  std::string node_program;    // empty: where this program is
  std::string node_directory;  // empty: .lockstep/NAME in the home directory
  // Limits, fixed at start: memory is decided before loading.
  int64_t max_model_len = 0;
  int64_t max_num_seqs = 16;
  int64_t prefill_chunk = 256;
  // Serving.
  std::string host = "127.0.0.1";
  int64_t grpc_port = 50'051;
  int64_t port = 8'000;
  std::string served_model_name;
  std::string api_key_file;
  std::string tls_cert;
  std::string tls_key;
  int64_t drain_timeout_ms = 10'000;
  bool prefix_cache = true;
  std::string prefix_cache_dir;
  int64_t prefill_delay_ms = 0;
  // One prompt.
  std::vector<std::string> prompt;
  std::string system;
  bool raw = false;
  std::string thinking = "auto";
  int64_t max_tokens = 0;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  int64_t logprobs = -1;
  bool ignore_eos = false;
  // `logits`.
  std::string tokens;
  std::string out;
  int64_t step = 0;
  bool together = false;
  bool dump_hidden = false;
  bool fast = false;  // as the other commands compute, not --exact
  bool draft = false;
  // `shard`.
  std::string quantize;
  std::string from;
  // `verify`, `shard`.
  bool record = false;
  // `bench`.
  std::string benchmark;
  std::string prompt_tokens;  // empty: bench prefill 128 and 512, plan the whole context
  int64_t context = 0;
  int64_t batch = 1;
  int64_t repeat = 3;
  std::string formats = "q4_0,q8_0,q4_k,q6_k";
  std::string rows = "1,8,32,128";
  std::string transports = "auto";
  std::string sizes = "4,1024,10240,20480,81920,1048576,5242880,20971520";
  std::string dtype;  // empty: as `wire`
  std::string added_latency_us = "0";
  // `bench modes`.
  std::string modes;        // empty: one node, pipelines and tensor
  std::string rank_counts;  // empty: as `ranks` or the YAML says
  std::string chart;
  // `bench serve`, with what `simulate` makes traces of.
  std::string url = "http://127.0.0.1:8000";
  std::string tls_ca;      // empty: what the system trusts
  int64_t vocab_size = 0;  // 0: as the server says
  int64_t request_timeout_ms = 600'000;
  double slo_ttft_ms = 0;  // 0: any will do
  double slo_itl_ms = 0;   // the same
  // `burn`.
  double minutes = 60;
  // `plan`.
  std::string hardware;
  std::string weights;
  std::string engine;
  std::string measured;
  int64_t users = 1;
  std::vector<double> draft_acceptance;
  // `simulate`. A trace is read, or made from what follows it.
  std::string trace;
  double rate = 1;
  double duration_s = 60;
  bool day_curve = false;
  int64_t output_tokens = 128;
  double length_spread = 0.7;
  int64_t prefix_groups = 0;
  int64_t prefix_tokens = 0;
  int64_t replicas = 1;
  std::string router = "least";
  // Output.
  bool json = false;
  std::string log_level = "info";
  std::string log_format = "text";
};

// How a flag's text becomes a field.
using OptionField =
    std::variant<std::string Options::*, int64_t Options::*, double Options::*, bool Options::*,
                 std::optional<double> Options::*, std::optional<int64_t> Options::*,
                 std::vector<double> Options::*, std::vector<std::string> Options::*>;

struct OptionSpec {
  const char* name;  // long flag and YAML key, with dashes
  OptionField field;
  const char* help;                   // one line: meaning, unit, default where it is not obvious
  std::vector<const char*> allowed;   // for strings: the values that exist; empty: any
  double lowest = 0, highest = 9e18;  // for numbers
  const char* alias = "";             // other spellings, comma-separated, with their dashes
};

std::span<const OptionSpec> OptionTable();
// The parts of `alias`.
std::vector<std::string> Aliases(const OptionSpec& spec);
// By its name, or by a long one of its others.
const OptionSpec* FindOption(std::string_view name);

// Sets one option from text. A bool takes "true" or "false"; lists take commas (shares) or repeat
// (prompt, stop). `where` names the source in errors: "--shares" or "local-2.yaml:12: shares".
Status SetOption(const OptionSpec& spec, std::string_view text, std::string_view where,
                 Options* options);

}  // namespace lockstep
