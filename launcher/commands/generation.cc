#include "launcher/commands/generation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "launcher/commands/cache_key.h"
#include "launcher/commands/pipelines.h"
#include "launcher/process.h"
#include "runtime/base/log.h"
#include "runtime/base/version.h"
#include "runtime/engine/defaults.h"
#include "runtime/engine/pipeline_executor.h"
#include "runtime/engine/tensor_parallel.h"
#include "runtime/model/shape.h"
#include "runtime/text/streaming_decoder.h"
#include "runtime/weights/partition.h"

namespace lockstep {
namespace {

class AnswerDecoder final : public TokenDecoder {
 public:
  explicit AnswerDecoder(const Tokenizer& tokenizer) : decoder_(tokenizer, /*skip_special=*/true) {}
  std::string Push(int32_t id) override { return decoder_.Push(id).value_or(""); }
  std::string Finish() override { return decoder_.Finish(); }

 private:
  StreamingDecoder decoder_;
};

Status CheckVocabulary(const ModelText& text, const ModelConfig& config) {
  if (text.tokenizer->vocab_size() > config.vocab_size) {
    return ModelError(
        "%s/tokenizer.json has token ids up to %d, but config.json says vocab_size %d: the files "
        "belong to "
        "different models",
        text.directory, text.tokenizer->vocab_size() - 1, config.vocab_size);
  }
  for (const int32_t id : text.stop_token_ids) {
    if (id >= config.vocab_size) {
      return ModelError(
          "%s/generation_config.json has eos_token_id %d, but config.json says vocab_size %d",
          text.directory, id, config.vocab_size);
    }
  }
  return OkStatus();
}

// What decides the bits of this session's KV pages on this rank.
CacheKeyFacts FactsOf(Session& session) {
  CacheKeyFacts facts;
  facts.build = BuildDescription();
  facts.c_library = CLibraryDescription();
  facts.model_digest = session.model_digest();
  facts.kernels = session.backend().name();
  facts.cache_type = std::string(kernels::NameOf(session.model().limits().cache_type));
  facts.shares = session.shares();
  facts.wire = session.options().wire;
  facts.sum_order = session.options().sum_order;
  facts.draft = session.model().has_draft_layer();
  for (const RankInfo& rank : session.membership().ranks()) facts.hosts.push_back(rank.host);
  return facts;
}

Status CannotKeepWith(const std::string& collective) {
  return UsageError(
      "--prefix-cache-dir: with --sum-order any, %s adds as it likes, so that answers over kept "
      "pages would not be those without them; leave out --sum-order any or --prefix-cache-dir",
      collective);
}

// What --prefix-cache-dir asks for; null: nothing.
StatusOr<std::unique_ptr<KeptCache>> KeptCacheOf(Session& session) {
  const Options& options = session.options();
  if (options.prefix_cache_dir.empty()) return nullptr;
  if (AddsAsItLikes(session)) return CannotKeepWith(session.group().traits().name);
  return std::make_unique<KeptCache>(options.prefix_cache_dir, CacheKeyOf(FactsOf(session)),
                                     [&session] { return session.membership().Health(); });
}

}  // namespace

bool AddsAsItLikes(Session& session) {
  return session.size() > 1 && session.options().sum_order == "any" &&
         !session.group().traits().any_order_is_fixed;
}

StatusOr<TextSession> OpenTextSession(const Options& options, SessionNeeds needs) {
  // A session that is opened again asks again: then rank 0 still has the text, the others only
  // check.
  const auto kept = std::make_shared<std::shared_ptr<ModelText>>();
  needs.limits = [kept, options](const ModelConfig& config) -> StatusOr<ModelLimits> {
    if (*kept == nullptr) {
      StatusOr<ModelText> text = LoadModelText(options.model, options.chat_template);
      if (!text.ok()) return text.status();
      *kept = std::make_shared<ModelText>(std::move(*text));
    }
    LOCKSTEP_RETURN_IF_ERROR(CheckVocabulary(**kept, config));
    return LimitsFromOptions(options, config);
  };
  TextSession opened;
  LOCKSTEP_ASSIGN_OR_RETURN(opened.session, OpenSession(options, needs));
  opened.constraints = MakeTokenConstraints(*(*kept)->tokenizer, (*kept)->stop_token_ids);
  if (opened.session->rank() != 0) {
    kept->reset();
    return opened;
  }
  opened.text = *kept;
  if (!opened.text->generation.warning.empty()) log::Warning("%s", opened.text->generation.warning);
  return opened;
}

StatusOr<std::unique_ptr<GroupExecutor>> MakeExecutor(Session& session,
                                                      TokenConstraints* constraints, bool keeps) {
  const std::vector<Range> cuts = CutModel(session.model().config(), session.shares()).vocab;
  const Range vocab = cuts[static_cast<size_t>(session.stage_group().rank())];
  if (session.stages() > 1) {
    PipelineSetup setup;
    setup.pipeline = PipelineOptionsOf(session);
    setup.plan_rows = PlanRowsOf(session);
    if (session.stage() + 1 == session.stages()) setup.slice = {vocab.begin, vocab.end};
    setup.names = RankNames(session);
    setup.constraints = constraints;
    LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<StageLink> link, OpenStageLink(session));
    return PipelineExecutor::Create(session.model(), session.group(), session.stage_group(),
                                    std::move(link), std::move(setup));
  }
  std::optional<InterruptScope> interrupts;
  std::unique_ptr<KeptCache> kept;
  if (keeps) {
    LOCKSTEP_ASSIGN_OR_RETURN(kept, KeptCacheOf(session));
    // To read it takes as long as the disks do. A signal ends that on all ranks; those after rank 0
    // leave it to rank 0.
    if (kept != nullptr && session.rank() == 0) {
      interrupts.emplace([&session] {
        session.membership().Abort(InterruptedError());
        session.group().Abort(InterruptedError());
      });
    }
  }
  return TensorParallelExecutor::Create(session.model(), session.group(), {vocab.begin, vocab.end},
                                        RankNames(session), &session.membership().meter(),
                                        constraints, std::move(kept));
}

Status WorkForRankZero(Session& session, int64_t patience_ms, TokenConstraints* constraints) {
  // Outlives the scope, whose thread looks at it.
  std::unique_ptr<GroupExecutor> executor;
  std::atomic<const GroupExecutor*> at_work{nullptr};
  std::atomic<bool> done{false};
  const InterruptScope scope([&] {
    for (int64_t waited_ms = 0; waited_ms < patience_ms && !done;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      // The disks take their time: a second signal is for who cannot wait.
      const GroupExecutor* const working = at_work;
      if (working == nullptr || !working->saving()) waited_ms += 20;
    }
    if (done) return;
    // Told with this rank's name.
    const Status reason = WithLostRank(PeerLostError("interrupted by a signal"), session.rank());
    session.membership().Abort(reason);
    session.group().Abort(reason);
  });
  const auto work = [&]() -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(executor, MakeExecutor(session, constraints, /*keeps=*/true));
    at_work = executor.get();
    return executor->RunWorker();
  };
  const Status status = work();
  done = true;
  return status;
}

Status WorkThroughLosses(Session& session, int64_t patience_ms, TokenConstraints* constraints) {
  while (true) {
    const Status end = session.FinalStatus(WorkForRankZero(session, patience_ms, constraints));
    if (!session.CanReopen(end)) return end;
    LOCKSTEP_RETURN_IF_ERROR(session.Reopen(end));
  }
}

Status CheckServing(const Options& options) {
  if (!options.prefix_cache_dir.empty() && !options.prefix_cache) {
    return UsageError(
        "--prefix-cache-dir keeps what --prefix-cache=false turns off; leave one out");
  }
  // Before a large model is loaded.
  if (!options.prefix_cache_dir.empty() && options.sum_order == "any" &&
      (options.collective == "mpi" || options.collective == "nccl"))
    return CannotKeepWith(options.collective);
  int rank = 0, size = 0, local_rank = 0, local_size = 0;
  if (!options.recover ||
      (options.collective != "mpi" && !DetectMpirun(&rank, &size, &local_rank, &local_size)))
    return OkStatus();
  return UsageError(
      "--recover: mpirun ends all ranks when one is lost, and starts none again; leave it out, or "
      "start the ranks without mpirun: --ranks on one machine, lockstep worker on several");
}

SchedulerLimits LimitsOf(Session& session) {
  const ModelLimits& model = session.model().limits();
  SchedulerLimits limits;
  limits.max_sequences = session.options().max_num_seqs;
  limits.max_rows = PlanRowsOf(session);
  limits.max_outputs = model.max_outputs;
  limits.prefill_rows = session.stages() * session.options().prefill_chunk;
  limits.prefill_rows_alone = ChunksOfStep(session) * session.options().prefill_chunk;
  limits.max_model_len = model.max_model_len;
  limits.kv_blocks = model.kv_blocks;
  limits.prefix_cache = session.options().prefix_cache;
  return limits;
}

std::unique_ptr<Engine> MakeEngine(Session& session, const ModelText& text, Executor* executor,
                                   int64_t probe_ms, TokenConstraints* constraints) {
  EngineOptions options;
  options.constraints = constraints;
  options.limits = LimitsOf(session);
  options.vocab_size = session.model().config().vocab_size;
  options.prefill_delay_s = static_cast<double>(session.options().prefill_delay_ms) * 1e-3;
  options.token_set = SampledTokens(*text.tokenizer, options.vocab_size);
  const Tokenizer* tokenizer = text.tokenizer.get();
  options.make_decoder = [tokenizer] { return std::make_unique<AnswerDecoder>(*tokenizer); };
  options.health = [&session] { return session.membership().Health(); };
  options.diagnose = [&session](const Status& status) { return session.FinalStatus(status); };
  options.probe_ms = probe_ms;
  return std::make_unique<Engine>(std::move(options), executor);
}

TokenSet SampledTokens(const Tokenizer& tokenizer, int64_t vocab_size) {
  TokenSet set;
  set.limit = std::min<int64_t>(tokenizer.vocab_size(), vocab_size);
  for (int32_t id = 0; id < set.limit; ++id) {
    if (!tokenizer.HasToken(id)) set.unknown.push_back(id);
  }
  return set;
}

Request RequestFromOptions(const Options& options, const ModelText& text) {
  Request request;
  request.sampling = DefaultSampling(text.generation);
  SamplingParams& sampling = request.sampling;
  sampling.temperature = options.temperature.value_or(sampling.temperature);
  sampling.top_k = options.top_k.value_or(sampling.top_k);
  sampling.top_p = options.top_p.value_or(sampling.top_p);
  sampling.min_p = options.min_p.value_or(sampling.min_p);
  sampling.repetition_penalty = options.repetition_penalty.value_or(sampling.repetition_penalty);
  sampling.presence_penalty = options.presence_penalty;
  sampling.frequency_penalty = options.frequency_penalty;
  sampling.seed = options.seed ? static_cast<uint64_t>(*options.seed) : FreshSeed();
  sampling.logprobs = static_cast<int32_t>(options.logprobs);
  request.stop.max_tokens = options.max_tokens;
  request.stop.texts = options.stop;
  if (!options.ignore_eos) request.stop.token_ids = text.stop_token_ids;
  return request;
}

Status Generate(Engine& engine, Request request, ReplyParser* parser,
                const std::function<void(const ReplyEvent&)>& show, Generated* generated) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<OutputStream> stream,
                            engine.Submit(std::move(request)));
  const auto take = [&](std::vector<ReplyEvent> events) {
    for (ReplyEvent& event : events) {
      if (event.kind == ReplyEvent::Kind::kReasoning) generated->reasoning += event.text;
      if (event.kind == ReplyEvent::Kind::kContent) generated->text += event.text;
      if (event.kind == ReplyEvent::Kind::kToolCall) {
        generated->tool_calls.push_back({event.name, event.arguments});
      }
      show(event);
    }
  };
  bool cancelled = false;
  while (true) {
    stream->WaitFor(100);
    if (Interrupted() && !cancelled) {
      engine.Cancel(stream->id(), InterruptedError());
      cancelled = true;
    }
    OutputDelta delta = stream->Take();
    generated->ids.insert(generated->ids.end(), delta.ids.begin(), delta.ids.end());
    generated->logprobs.insert(generated->logprobs.end(), delta.logprobs.begin(),
                               delta.logprobs.end());
    if (parser != nullptr) {
      take(parser->Push(delta.text));
    } else if (!delta.text.empty()) {
      take({ReplyEvent{ReplyEvent::Kind::kContent, delta.text, {}, {}}});
    }
    if (!delta.finished) continue;
    if (parser != nullptr) take(parser->Finish());
    generated->summary = stream->summary();
    return generated->summary.error;
  }
}

double PrefillRate(const Summary& summary) {
  const double seconds = summary.timings.prefill_s;
  return seconds > 0 ? static_cast<double>(summary.usage.prompt_tokens) / seconds : 0;
}

// The first token belongs to the prefill.
double DecodeRate(const Summary& summary) {
  const double seconds = summary.timings.decode_s;
  return seconds > 0 ? static_cast<double>(summary.usage.completion_tokens - 1) / seconds : 0;
}

}  // namespace lockstep
