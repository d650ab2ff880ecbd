#include "runtime/base/options.h"

#include <string>

#include "runtime/base/option_parts.h"

namespace lockstep {
namespace {

using O = Options;

std::vector<OptionSpec> ModelOptions() {
  return {
      {"model",
       &O::model,
       "checkpoint: a directory in Hugging Face layout, or a .gguf file; of bench serve: the name "
       "that the server knows it by, default: its first",
       {},
       0,
       0,
       "-m"},
      {"kernels",
       &O::kernels,
       "kernel set: plain loops, or the best of this processor's, or one of them",
       {"auto", "ref", "cpu", "cpu/avx512vnni", "cpu/avx512", "cpu/avx2", "cpu/i8mm", "cpu/dotprod",
        "cpu/neon", "cpu/baseline"}},
      {"device", &O::device,
       "what ranks compute on: cpu, or a GPU as cuda:N; for all ranks, or one each "
       "(cuda:0,cuda:1)"},
      {"mixed-kernels", &O::mixed_kernels,
       "ranks with different kernels, processors or GPUs together: rank 0 chooses the experts for "
       "all, which takes one more message a layer; for every rank"},
      {"exact", &O::exact,
       "multiply quantized weights with float32 activations, not with 8-bit ones"},
      {"kv-cache-dtype",
       &O::kv_cache_dtype,
       "numbers in the KV cache; auto: f32 (bf16 and f16: half the memory, q8: a third)",
       {"auto", "f32", "bf16", "f16", "q8"}},
      {"chat-template",
       &O::chat_template,
       "template family; auto: recognised in the checkpoint",
       {"auto", "glm-4.6", "glm-4.7"}}};
}

std::vector<OptionSpec> RankOptions() {
  return {
      {"ranks",
       &O::ranks,
       "ranks to start on this machine",
       {},
       1,
       1024,
       "-tp,--tensor-parallel-size"},
      {"rank",
       &O::rank,
       "this process's rank, for nodes started one by one from a YAML; of shard: only its file",
       {},
       0,
       1023},
      {"shares",
       &O::shares,
       "relative work per rank, for example 3,2; default equal; in a pipeline per stage, of the "
       "layers' bytes, and by default as its memory",
       {},
       0,
       1e9},
      {"threads",
       &O::threads,
       "compute threads per rank; default: the rank's share of the cores",
       {},
       1,
       4096,
       "-t"},
      {"config", &O::config, "cluster YAML"},
      {"interface", &O::interface, "network interface for the exchange, for example enp1s0f0"},
      {"secret-file", &O::secret_file,
       "cluster secret, a file that only its owner can read (0600)"},
      {"rendezvous", &O::rendezvous, "host:port where rank 0 gathers the others"},
      {"start-timeout-ms",
       &O::start_timeout_ms,
       "longest wait for all ranks to join",
       {},
       100,
       86'400'000},
      {"exchange-timeout-ms",
       &O::exchange_timeout_ms,
       "longest wait inside one exchange",
       {},
       100,
       86'400'000},
      {"peer-timeout-ms",
       &O::peer_timeout_ms,
       "silence after which a rank counts as lost",
       {},
       500,
       86'400'000},
      {"verify-exchanges", &O::verify_exchanges,
       "check every byte between ranks with a digest; over tcp, shm and rdma"}};
}

std::vector<OptionSpec> ModeOptions() {
  return {
      {"mode",
       &O::mode,
       "how ranks share the model: tensor (all compute every layer together) or pipeline (each has "
       "layers of its own, and rows go from one to the next; for comparison)",
       {"tensor", "pipeline"}},
      {"stages",
       &O::stages,
       "stages of a pipeline; with fewer than ranks, those of a stage compute its layers together; "
       "default: as many as ranks",
       {},
       1,
       1024},
      {"stage-link",
       &O::stage_link,
       "how the stages of a pipeline pass rows on: gRPC, or a transport",
       {"grpc", "tcp", "shm", "rdma"}}};
}

std::vector<OptionSpec> ExchangeOptions() {
  return {
      {"collective", &O::collective, "how ranks exchange", {"tcp", "shm", "rdma", "mpi", "nccl"}},
      {"wire",
       &O::wire,
       "numbers of the layers' sums between ranks; bf16: half the bytes, int8: a quarter and more",
       {"f32", "bf16", "int8"}},
      {"sum-order",
       &O::sum_order,
       "in which order ranks' values are added; rank: the same bits whatever the transport and the "
       "algorithm; any: with fewer messages, which may be faster from four ranks on",
       {"rank", "any"}},
      {"gather-sum-bytes",
       &O::gather_sum_bytes,
       "longest sum on the wire that rank 0 makes for all; rank 0's counts; `bench collectives "
       "--record` finds it; default: 0, or 131072 where three ranks and more are all on one "
       "machine and outnumber its cores",
       {},
       0,
       1 << 30},
      {"direct-sum-bytes",
       &O::direct_sum_bytes,
       "longest sum on the wire that is made in one step, not in two (with --sum-order any: by "
       "doubling, not by halving); rank 0's counts; `bench collectives --record` finds it; "
       "default: "
       "32768, with two ranks any",
       {},
       0,
       1 << 30},
      {"overlap-rows",
       &O::overlap_rows,
       "steps of at least so many tokens run in two halves, one of which is computed while the "
       "other's sums travel; 0: none; rank 0's counts; default: 128, on one machine 0",
       {},
       0,
       65'536},
      {"rdma-mode",
       &O::rdma_mode,
       "RDMA connections: rc (reliable), uc (Thunderbolt); auto: rc where the device has it",
       {"auto", "rc", "uc"}}};
}

std::vector<OptionSpec> LimitOptions() {
  return {{"max-model-len",
           &O::max_model_len,
           "longest context in tokens; default: the model's, up to 32768",
           {},
           1,
           16'777'216,
           "-c,--ctx-size"},
          {"max-num-seqs",
           &O::max_num_seqs,
           "most requests computed together",
           {},
           1,
           4096,
           "-np,--parallel"},
          {"prefill-chunk", &O::prefill_chunk, "most prompt tokens in one step", {}, 1, 65'536}};
}

std::vector<OptionSpec> ServingOptions() {
  return {
      {"host", &O::host, "address to serve on"},
      {"grpc-port", &O::grpc_port, "gRPC port; 0 picks a free one", {}, 0, 65'535},
      {"port", &O::port, "HTTP port of serve and files; 0 picks a free one", {}, 0, 65'535},
      {"served-model-name",
       &O::served_model_name,
       "name that clients see; default: the directory's",
       {},
       0,
       9e18,
       "-a,--alias"},
      {"api-key-file", &O::api_key_file,
       "file of API keys: a name, a SHA-256 and limits a line; this or TLS to serve other "
       "machines; of bench serve: the key itself"},
      {"tls-cert",
       &O::tls_cert,
       "PEM file of the certificate with which HTTP and gRPC speak TLS, and of those that signed "
       "it",
       {},
       0,
       0,
       "--ssl-certfile,--ssl-cert-file"},
      {"tls-key",
       &O::tls_key,
       "PEM file of its private key",
       {},
       0,
       0,
       "--ssl-keyfile,--ssl-key-file"},
      {"drain-timeout-ms",
       &O::drain_timeout_ms,
       "longest wait for running requests after SIGTERM; for every rank",
       {},
       0,
       86'400'000},
      {"prefix-cache",
       &O::prefix_cache,
       "keep the KV of what was computed while there is room, and begin behind it where a prompt "
       "begins alike; default: true",
       {},
       0,
       9e18,
       "--enable-prefix-caching"},
      {"prefix-cache-dir", &O::prefix_cache_dir,
       "directory in which each rank keeps that KV over a restart, in a file for its owner alone; "
       "written at an orderly end, read at the next start; default: nothing is written; for every "
       "rank"},
      {"prefill-delay-ms",
       &O::prefill_delay_ms,
       "how much longer a step in which answers grow may take because of prompts, as far as the "
       "number of their rows can see to it; 0: no bound but --prefill-chunk",
       {},
       0,
       60'000},
      {"recover", &O::recover,
       "when a rank is lost, start it again, or wait for it on its node, and load again instead "
       "of ending; for every rank, not under mpirun"}};
}

std::vector<OptionSpec> CircuitOptions() {
  return {
      {"circuit-failures",
       &O::circuit_failures,
       "with --recover: so many losses within the window, and requests are refused for a while "
       "before the group is formed again; 0: it is always formed at once",
       {},
       0,
       1'000},
      {"circuit-window-ms",
       &O::circuit_window_ms,
       "how long a loss counts among those: time in which ranks served",
       {},
       1'000,
       86'400'000},
      {"circuit-wait-ms",
       &O::circuit_wait_ms,
       "that while, the first time; it doubles as long as losses go on",
       {},
       100,
       3'600'000},
      {"circuit-longest-wait-ms",
       &O::circuit_longest_wait_ms,
       "the longest that it becomes; the same for every rank, as those that are left wait so long "
       "for rank 0",
       {},
       100,
       3'600'000}};
}

std::vector<OptionSpec> NodeOptions() {
  return {{"ssh", &O::ssh,
           "how up, down and status reach other machines: a program and its flags, separated by "
           "spaces, for example \"ssh -p 2222\""},
          {"node-program", &O::node_program,
           "path of lockstep on every node; default: where this program is"},
          {"node-directory", &O::node_directory,
           "where up keeps the cluster YAML, logs and process ids on every node; default: "
           "~/.lockstep/ and the name of the YAML"}};
}

std::vector<OptionSpec> PromptOptions() {
  return {
      {"prompt", &O::prompt, "the user's message", {}, 0, 0, "-p"},
      {"system", &O::system, "system message", {}, 0, 0, "-sys,--system-prompt"},
      {"raw", &O::raw, "complete the prompt as it is, without the chat template"},
      {"thinking",
       &O::thinking,
       "let the model think first; auto: as the template does",
       {"auto", "on", "off"}},
      {"max-tokens",
       &O::max_tokens,
       "most tokens to generate; default: what fits the context",
       {},
       1,
       16'777'216,
       "-n,--predict,--n-predict"},
      {"temperature",
       &O::temperature,
       "0 is greedy; default: generation_config.json",
       {},
       0,
       100,
       "--temp"},
      {"top-k", &O::top_k, "keep the k most likely tokens; 0: all", {}, 0, 1'000'000},
      {"top-p", &O::top_p, "keep the smallest set with this probability", {}, 0, 1},
      {"min-p", &O::min_p, "drop tokens below this share of the best one's probability", {}, 0, 1},
      {"repetition-penalty",
       &O::repetition_penalty,
       "divide the logits of tokens seen; 1: off",
       {},
       0.01,
       100,
       "--repeat-penalty"},
      {"presence-penalty",
       &O::presence_penalty,
       "subtract from tokens generated before",
       {},
       -100,
       100},
      {"frequency-penalty",
       &O::frequency_penalty,
       "subtract per earlier occurrence",
       {},
       -100,
       100},
      {"seed",
       &O::seed,
       "seed of the random draws; default: a fresh one, of simulate and bench serve 1",
       {},
       0,
       9e15,
       "-s"},
      {"stop", &O::stop, "text that ends the answer; may be repeated"},
      {"logprobs", &O::logprobs, "report log-probabilities of the n best tokens", {}, 0, 20},
      {"ignore-eos", &O::ignore_eos, "go on after the model's end tokens"}};
}

std::vector<OptionSpec> BenchOptions() {
  return {{"benchmark",
           &O::benchmark,
           "what to measure",
           {"kernels", "collectives", "decode", "prefill", "steps", "modes", "serve"}},
          {"prompt-tokens", &O::prompt_tokens,
           "lengths of the prompts of bench prefill, 128,512; of plan: how many of the context's "
           "last tokens are the prompt, all; of simulate and bench serve: their mean, 512"},
          {"context",
           &O::context,
           "tokens before those of bench decode; of plan: of each user, 8192 if not given",
           {},
           0,
           16'777'216},
          {"batch", &O::batch, "sequences that bench decode continues together", {}, 1, 4096},
          {"repeat", &O::repeat, "repetitions of every test, after a warm-up", {}, 1, 1000},
          {"formats", &O::formats, "weight formats of bench kernels, by their names, or all"},
          {"rows", &O::rows, "rows that bench kernels multiplies at once"},
          {"transports", &O::transports,
           "what bench collectives and doctor measure; auto: tcp, shm on one machine, and "
           "for doctor rdma where every rank has it"},
          {"sizes", &O::sizes, "bytes of float32 values that bench collectives adds up"},
          {"dtype",
           &O::dtype,
           "what those values travel as; default: as --wire",
           {"float32", "bf16", "int8"}},
          {"added-latency-us", &O::added_latency_us,
           "microseconds by which all that a rank sends is held back, to measure what a slower "
           "network costs; several by turns: 0,50,500"},
          {"modes", &O::modes,
           "what bench modes compares: single, pipeline/LINK and tensor/COLLECTIVE, with commas; "
           "default: single, pipeline/grpc, and pipeline and tensor over --collective"},
          {"rank-counts", &O::rank_counts,
           "bench modes: how many ranks on this machine, one after the other: 2,3,4"},
          {"chart", &O::chart, "bench modes: an SVG file for its curves"}};
}

std::vector<OptionSpec> BurnOptions() {
  return {{"minutes", &O::minutes, "how long burn goes on, 60", {}, 0.01, 100'000}};
}

std::vector<OptionSpec> PlanOptions() {
  return {
      {"hardware", &O::hardware,
       "what the cluster is: a preset (dgx-spark-2, ...; a wrong name lists them) or a YAML file "
       "of one"},
      {"weights", &O::weights,
       "formats of a model that --model names and no files hold: q4_k_m, fp8, ..."},
      {"engine", &O::engine,
       "whose speed is predicted: a program that was measured on such hardware; default: the "
       "first that the hardware's family lists"},
      {"measured", &O::measured,
       "file with what doctor, bench decode and bench prefill printed with --json on this cluster, "
       "in place of published figures"},
      {"users", &O::users, "users that are answered at once", {}, 1, 4096},
      {"draft-acceptance",
       &O::draft_acceptance,
       "part of the drafts (MTP) that is right, of each further token: 0.9 or 0.9,0.6; default: "
       "no drafts",
       {},
       0,
       1}};
}

std::vector<OptionSpec> OutputOptions() {
  return {
      {"tokens", &O::tokens, "JSON file with token id lists; of bench: how many to decode, 32"},
      {"out", &O::out,
       "output file; of shard: directory; of simulate and bench serve: the trace that was made"},
      {"quantize", &O::quantize,
       "fewer bits: q8_0, q6_k, q5_k, q4_k, q4_0 or fp8, of attention, dense, experts and "
       "shared; draft, embedding and head by name alone: q4_k,head=q6_k,draft=q8_0"},
      {"record", &O::record,
       "record the probe prompt's logits; verify: with --exact; shard: reads all weights; "
       "files: before serving, for those who fetch; "
       "bench collectives: gather-sum-bytes and direct-sum-bytes, in the file of --config"},
      {"from", &O::from,
       "URL in place of --model: a directory (lockstep files, Hugging Face) or a .gguf file"},
      {"step",
       &O::step,
       "tokens per step through the cache; default: --prefill-chunk",
       {},
       1,
       1'000'000},
      {"together", &O::together, "run all sequences as one batch"},
      {"dump-hidden", &O::dump_hidden,
       "also write the final hidden states, and every rank's copy of them"},
      {"fast", &O::fast,
       "compute as the other commands do, quantized weights with 8-bit activations; default: "
       "--exact"},
      {"draft", &O::draft,
       "also write what the draft layer (MTP) says: row t is for position t + 2"},
      {"json", &O::json, "print one JSON object instead of text"},
      {"log-level",
       &O::log_level,
       "what goes to stderr",
       {"debug", "info", "warning", "error", "off"}},
      {"log-format",
       &O::log_format,
       "how: lines to read, or a JSON object a line",
       {"text", "json"}}};
}

}  // namespace

std::span<const OptionSpec> OptionTable() {
  static const std::vector<OptionSpec> table = [] {
    std::vector<OptionSpec> all;
    for (const auto& part :
         {ModelOptions(), RankOptions(), ModeOptions(), ExchangeOptions(), LimitOptions(),
          ServingOptions(), CircuitOptions(), NodeOptions(), PromptOptions(), BenchOptions(),
          BenchServeOptions(), BurnOptions(), PlanOptions(), TraceOptions(), OutputOptions()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return table;
}

}  // namespace lockstep
