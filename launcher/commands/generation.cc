#include "launcher/commands/generation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "launcher/commands/pipelines.h"
#include "launcher/process.h"
#include "runtime/base/log.h"
#include "runtime/engine/defaults.h"
#include "runtime/engine/pipeline_executor.h"
#include "runtime/engine/tensor_parallel.h"
#include "runtime/model/shape.h"
#include "runtime/text/streaming_decoder.h"

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

}  // namespace

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
                                                      TokenConstraints* constraints) {
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
  return TensorParallelExecutor::Create(session.model(), session.group(), {vocab.begin, vocab.end},
                                        RankNames(session), &session.membership().meter(),
                                        constraints);
}

Status WorkForRankZero(Session& session, int64_t patience_ms, TokenConstraints* constraints) {
  std::atomic<bool> done{false};
  const InterruptScope scope([&] {
    for (int64_t waited_ms = 0; waited_ms < patience_ms && !done; waited_ms += 20) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (done) return;
    // Told with this rank's name.
    const Status reason = WithLostRank(PeerLostError("interrupted by a signal"), session.rank());
    session.membership().Abort(reason);
    session.group().Abort(reason);
  });
  const auto work = [&]() -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<GroupExecutor> executor,
                              MakeExecutor(session, constraints));
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

Status CheckRecover(const Options& options) {
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
