#include <dlpack/dlpack.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/grammar/constraints.h"
#include "runtime/grammar/task_thread.h"
#include "runtime/text/json_value.h"

namespace lockstep {
namespace {

constexpr std::string_view kThinkOpen = "<think>", kThinkClose = "</think>";
constexpr std::array<std::string_view, 8> kTags = {kThinkOpen,     kThinkClose,   "<tool_call>",
                                                   "</tool_call>", "<arg_key>",   "</arg_key>",
                                                   "<arg_value>",  "</arg_value>"};
// Compiled grammars that are kept for the next request with the same one.
constexpr int64_t kCacheBytes = int64_t{128} << 20;
// What a set may cost unnoticed beside a forward pass, and what an answer's compiling and its
// dearer sets may cost beyond, in all.
constexpr int64_t kUnnoticedNs = 50'000'000, kMostLateNs = 3'000'000'000;
// The longest that a step waits for a set: well below what ranks wait for each other (30 s).
constexpr std::chrono::seconds kLongestWait(10);

using Mask = std::vector<uint32_t>;

void Allow(Mask& mask, int32_t id) { mask[static_cast<size_t>(id) / 32] |= 1u << (id % 32); }
void Forbid(Mask& mask, int32_t id) { mask[static_cast<size_t>(id) / 32] &= ~(1u << (id % 32)); }

enum class Phase { kOpening, kOpened, kThinking, kGrammar };

struct Grammar {
  Phase first = Phase::kGrammar;
  bool tabs = false;
  std::string structural_tag;
};

StatusOr<Grammar> ParseGrammar(const std::string& text) {
  if (text.size() > kMaxGrammarBytes) {
    return RequestError("the grammar of the answer has %d bytes, but may have at most %d",
                        text.size(), kMaxGrammarBytes);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue json, ParseJson(text));
  const JsonValue *start = json.Find("start"), *tabs = json.Find("tabs"),
                  *format = json.Find("format");
  if (start == nullptr || !start->is_string() || tabs == nullptr || !tabs->is_bool() ||
      format == nullptr) {
    return RequestError("a grammar is an object with start, tabs and format");
  }
  Grammar grammar;
  grammar.tabs = tabs->AsBool();
  grammar.first = start->AsString() == "thinking"    ? Phase::kThinking
                  : start->AsString() == "undecided" ? Phase::kOpening
                                                     : Phase::kGrammar;
  grammar.structural_tag =
      JsonValue::MakeObject({{"type", JsonValue::String("structural_tag")}, {"format", *format}})
          .Dump();
  return grammar;
}

// What the library says, without its clock, its files and its checks' code.
std::string Reason(const std::exception& error) {
  std::string text = error.what();
  for (const std::string_view before : {".cc:", ": ", " is false: "}) {
    if (const size_t at = text.find(before); at != std::string::npos)
      text.erase(0, at + before.size());
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

// The tokens as grammars see them; "" for those that no grammar names.
std::string BytesOf(const Tokenizer& tokenizer, int32_t id) {
  if (!tokenizer.HasToken(id) || tokenizer.IsSpecial(id)) return {};
  std::string bytes(tokenizer.TokenBytes(id));
  if (tokenizer.IsAdded(id)) {
    const bool tag = std::find(kTags.begin(), kTags.end(), bytes) != kTags.end();
    return tag ? kTagMark + bytes : std::string();
  }
  // No JSON has them in strings, and the library lets them into those with a length.
  const auto control = [](char c) { return c >= 0 && c < ' ' && c != '\n' && c != '\t'; };
  return std::any_of(bytes.begin(), bytes.end(), control) ? std::string() : bytes;
}

// What all constraints of a rank share.
class Grammars {
 public:
  Grammars(const Tokenizer& tokenizer, const std::vector<int32_t>& end_tokens)
      : end_tokens_(end_tokens), ends_((tokenizer.vocab_size() + 31) / 32) {
    free_ = opening_ = opened_ = ends_;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      bytes_.push_back(BytesOf(tokenizer, id));
      if (tokenizer.HasToken(id)) Allow(free_, id);
      const std::string_view text = tokenizer.TokenBytes(id);
      if (text == kThinkOpen) Allow(opened_, id);
      if (text == kThinkOpen || text == "\n") Allow(opening_, id);
      if (text == "<tool_call>") Forbid(free_, id);
      digest_ = Digest64(std::as_bytes(std::span(bytes_.back())), digest_);
    }
    for (const int32_t id : end_tokens) {
      Forbid(free_, id);
      Allow(ends_, id);
    }
    // A vocabulary without <think> cannot begin as it must.
    if (std::all_of(opened_.begin(), opened_.end(), [](uint32_t word) { return word == 0; }))
      opening_ = opened_ = ends_;
    digest_ = Digest64(std::as_bytes(std::span<const uint32_t>(ends_)), digest_);
  }

  // Throws what the library throws. Any thread.
  xgrammar::CompiledGrammar Compile(const Grammar& grammar) {
    return CompilerFor(grammar.tabs).CompileStructuralTag(grammar.structural_tag);
  }

  const Mask& free() const { return free_; }        // while thinking
  const Mask& opening() const { return opening_; }  // before it
  const Mask& opened() const { return opened_; }    // before it, behind a newline
  const Mask& ends() const { return ends_; }        // what ends a reply
  // Of a token, without the mark.
  std::string_view TextOf(int32_t id) const {
    std::string_view text = bytes_[static_cast<size_t>(id)];
    if (text.starts_with(kTagMark)) text.remove_prefix(1);
    return text;
  }
  uint64_t digest() const { return std::max<uint64_t>(digest_, 1); }

  // Tasks for one thread, which computes the sets, and for one that only compiles.
  void PostMasking(std::function<void()> task) { masking_.Post(std::move(task)); }
  void PostCompiling(std::function<void()> task) { compiling_.Post(std::move(task)); }

  // A set was waited for in vain, and the thread is still at it: who waits behind it gives up too,
  // so that a step waits once.
  std::atomic<bool> stuck = false;

 private:
  // Sorting the vocabulary takes a fifth of a second, and most servers never need both.
  xgrammar::GrammarCompiler& CompilerFor(bool tabs) {
    const std::lock_guard lock(mutex_);
    std::optional<xgrammar::GrammarCompiler>& compiler = compilers_[tabs ? 1 : 0];
    if (!compiler.has_value()) {
      std::vector<std::string> vocabulary = bytes_;
      for (std::string& bytes : vocabulary) {
        if (!tabs && bytes.find('\t') != std::string::npos) bytes.clear();
      }
      const xgrammar::TokenizerInfo tokens(vocabulary, xgrammar::VocabType::RAW,
                                           static_cast<int>(vocabulary.size()), end_tokens_);
      compiler.emplace(tokens, 1, true, kCacheBytes, true);
    }
    return *compiler;
  }

  const std::vector<int32_t> end_tokens_;
  std::vector<std::string> bytes_;
  Mask free_, opening_, opened_, ends_;
  uint64_t digest_ = 0;
  std::mutex mutex_;
  std::array<std::optional<xgrammar::GrammarCompiler>, 2> compilers_;
  // Last, since their tasks use the others; and who compiles posts to who computes sets.
  TaskThread masking_;
  TaskThread compiling_;
};

// What the threads share of one sequence: outlives its constraint while a task is under way.
struct Sequence {
  explicit Sequence(Grammars& shared) : grammars(shared), mask(shared.ends()) {}

  // On the compiling thread, so that the sets of other sequences do not wait for it.
  static void Compile(const std::shared_ptr<Sequence>& sequence);
  // Takes the tokens that wait and computes the set behind them. On the masking thread.
  void Advance();

  Grammars& grammars;
  Grammar grammar;
  std::atomic<bool> abandoned = false;  // the answer ended: what is left to do is not wanted
  std::mutex mutex;
  std::condition_variable done;
  bool compiled = false;         // a matcher is there, or cannot be had
  std::vector<int32_t> waiting;  // tokens that the matcher has not taken
  int pending = 0;               // tasks; without any what follows is the constraint's to read
  std::optional<xgrammar::GrammarMatcher> matcher;  // none: the grammar could not be kept
  bool over = false;                                // only the end may follow
  Mask mask;
  int64_t late_ns = 0;  // of its work, what others had to wait for

 private:
  void Take(int32_t token);
  void Fill();
};

void Sequence::Compile(const std::shared_ptr<Sequence>& sequence) {
  if (sequence->abandoned) return;
  const int64_t begin_ns = NowNs();
  std::optional<xgrammar::CompiledGrammar> compiled;
  try {
    compiled = sequence->grammars.Compile(sequence->grammar);
  } catch (const std::exception&) {
    // Rank 0 has compiled it: this rank differs, which the comparison of the sets will tell.
  }
  const int64_t compile_ns = NowNs() - begin_ns;
  sequence->grammars.PostMasking([sequence, compiled, compile_ns] {
    try {
      if (compiled.has_value() && !sequence->abandoned) sequence->matcher.emplace(*compiled);
    } catch (const std::exception&) {
      sequence->matcher.reset();
    }
    {
      const std::lock_guard lock(sequence->mutex);
      sequence->compiled = true;
      sequence->late_ns += compile_ns;
    }
    sequence->Advance();
  });
}

void Sequence::Advance() {
  if (abandoned) {
    grammars.stuck = false;
    return;
  }
  const int64_t begin_ns = NowNs();
  std::vector<int32_t> tokens;
  {
    const std::lock_guard lock(mutex);
    tokens.swap(waiting);
  }
  for (const int32_t token : tokens) {
    if (!abandoned) Take(token);
  }
  if (!abandoned) Fill();
  grammars.stuck = false;
  const std::lock_guard lock(mutex);
  late_ns += std::max<int64_t>(NowNs() - begin_ns - kUnnoticedNs, 0);
  --pending;
  done.notify_one();
}

void Sequence::Take(int32_t token) {
  if (over || !matcher.has_value()) return;
  over = matcher->IsTerminated();
  if (over) return;
  // A token that only ends what the grammar left without a way on is refused here.
  try {
    if (!matcher->AcceptToken(token)) over = true;
  } catch (const std::exception&) {
    over = true;
  }
}

void Sequence::Fill() {
  mask = grammars.ends();
  if (!over && matcher.has_value() && !matcher->IsTerminated()) {
    std::vector<uint32_t> next(mask.size());
    int64_t words = static_cast<int64_t>(next.size());
    DLTensor tensor = {next.data(), {kDLCPU, 0}, 1, {kDLInt, 32, 1}, &words, nullptr, 0};
    try {
      // Nothing is left out of text that may be anything.
      if (!matcher->FillNextTokenBitmask(&tensor)) next.assign(next.size(), ~uint32_t{0});
    } catch (const std::exception&) {
      std::fill(next.begin(), next.end(), 0);
    }
    const bool any = std::any_of(next.begin(), next.end(), [](uint32_t word) { return word != 0; });
    if (any) mask = std::move(next);
  }
}

class XgrammarConstraint final : public TokenConstraint {
 public:
  XgrammarConstraint(Grammars& grammars, Grammar grammar)
      : grammars_(grammars), sequence_(std::make_shared<Sequence>(grammars)) {
    phase_ = grammar.first;
    sequence_->grammar = std::move(grammar);
    sequence_->pending = 1;
    grammars_.PostCompiling([sequence = sequence_] { Sequence::Compile(sequence); });
  }
  ~XgrammarConstraint() override { sequence_->abandoned = true; }

  void Append(int32_t token) override {
    if (phase_ != Phase::kGrammar) {
      Think(token);
      return;
    }
    const std::lock_guard lock(sequence_->mutex);
    sequence_->waiting.push_back(token);
    // Who compiles takes what waits.
    if (!sequence_->compiled || sequence_->waiting.size() > 1) return;
    ++sequence_->pending;
    grammars_.PostMasking([sequence = sequence_] { sequence->Advance(); });
  }

  std::span<const uint32_t> Allowed() override {
    if (phase_ == Phase::kOpening) return grammars_.opening();
    if (phase_ == Phase::kOpened) return grammars_.opened();
    if (phase_ == Phase::kThinking) return grammars_.free();
    std::unique_lock lock(sequence_->mutex);
    const auto there = [this] { return sequence_->pending == 0; };
    if (!gave_up_ && !there()) {
      const auto wait = grammars_.stuck ? std::chrono::seconds(0) : kLongestWait;
      gave_up_ = !sequence_->done.wait_for(lock, wait, there);
      if (gave_up_ && sequence_->compiled) grammars_.stuck = true;
    }
    if (gave_up_) return grammars_.ends();
    return sequence_->mask;
  }

  bool too_slow() const override {
    const std::lock_guard lock(sequence_->mutex);
    return gave_up_ || sequence_->late_ns > kMostLateNs;
  }

 private:
  // By the tokens that mark it, as the limit of thinking is counted.
  void Think(int32_t token) {
    const std::string_view text = grammars_.TextOf(token);
    if (phase_ == Phase::kOpening) phase_ = Phase::kOpened;
    if (text == kThinkOpen) phase_ = Phase::kThinking;
    if (text == kThinkClose) phase_ = Phase::kGrammar;
  }

  Grammars& grammars_;
  const std::shared_ptr<Sequence> sequence_;
  Phase phase_ = Phase::kGrammar;
  bool gave_up_ = false;  // the set that a step wanted was not there in time
};

class XgrammarConstraints final : public TokenConstraints {
 public:
  XgrammarConstraints(const Tokenizer& tokenizer, const std::vector<int32_t>& end_tokens)
      : grammars_(tokenizer, end_tokens) {}

  Status Check(const std::string& text) override {
    LOCKSTEP_ASSIGN_OR_RETURN(const Grammar grammar, ParseGrammar(text));
    try {
      (void)grammars_.Compile(grammar);
    } catch (const std::exception& error) {
      return RequestError("the answer's grammar cannot be made of this schema: %s", Reason(error));
    }
    return OkStatus();
  }

  std::unique_ptr<TokenConstraint> Start(const std::string& text) override {
    StatusOr<Grammar> grammar = ParseGrammar(text);
    // A plan that says otherwise: an empty grammar compiles nowhere.
    return std::make_unique<XgrammarConstraint>(grammars_,
                                                grammar.ok() ? *std::move(grammar) : Grammar());
  }

  uint64_t digest() const override { return grammars_.digest(); }

 private:
  Grammars grammars_;
};

}  // namespace

std::unique_ptr<TokenConstraints> MakeTokenConstraints(const Tokenizer& tokenizer,
                                                       const std::vector<int32_t>& end_tokens) {
  if (end_tokens.empty()) return nullptr;
  return std::make_unique<XgrammarConstraints>(tokenizer, end_tokens);
}

}  // namespace lockstep
