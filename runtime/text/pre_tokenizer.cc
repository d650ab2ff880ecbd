#include "runtime/text/pre_tokenizer.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/log.h"
#include "runtime/text/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace lockstep {
namespace {

// Characters that Oniguruma in tokenizers 0.23.3 (Unicode 16) and PCRE2 10.42 (Unicode 14) class
// differently, found by asking both about every code point in November 2026.
enum class CharClass : char { kOther, kLetter, kNumber };
struct ClassRange {
  char32_t first, last;
  CharClass char_class;
};
constexpr CharClass kL = CharClass::kLetter;
constexpr CharClass kN = CharClass::kNumber;
constexpr ClassRange kDifferent[] = {
    {0x180E, 0x180E, CharClass::kOther},  // PCRE2's \s still has it, Unicode has not since 6.3
    {0x1C89, 0x1C8A, kL},
    {0xA7CB, 0xA7CD, kL},
    {0xA7DA, 0xA7DC, kL},
    {0x105C0, 0x105F3, kL},
    {0x10D40, 0x10D49, kN},
    {0x10D4A, 0x10D65, kL},
    {0x10D6F, 0x10D85, kL},
    {0x10EC2, 0x10EC4, kL},
    {0x1123F, 0x11240, kL},
    {0x11380, 0x11389, kL},
    {0x1138B, 0x1138B, kL},
    {0x1138E, 0x1138E, kL},
    {0x11390, 0x113B5, kL},
    {0x113B7, 0x113B7, kL},
    {0x113D1, 0x113D1, kL},
    {0x113D3, 0x113D3, kL},
    {0x116D0, 0x116E3, kN},
    {0x11BC0, 0x11BE0, kL},
    {0x11BF0, 0x11BF9, kN},
    {0x11F02, 0x11F02, kL},
    {0x11F04, 0x11F10, kL},
    {0x11F12, 0x11F33, kL},
    {0x11F50, 0x11F59, kN},
    {0x1342F, 0x1342F, kL},
    {0x13441, 0x13446, kL},
    {0x13460, 0x143FA, kL},
    {0x16100, 0x1611D, kL},
    {0x16130, 0x16139, kN},
    {0x16D40, 0x16D6C, kL},
    {0x16D70, 0x16D79, kN},
    {0x18CFF, 0x18CFF, kL},
    {0x1B132, 0x1B132, kL},
    {0x1B155, 0x1B155, kL},
    {0x1CCF0, 0x1CCF9, kN},
    {0x1D2C0, 0x1D2D3, kN},
    {0x1DF25, 0x1DF2A, kL},
    {0x1E030, 0x1E06D, kL},
    {0x1E4D0, 0x1E4EB, kL},
    {0x1E4F0, 0x1E4F9, kN},
    {0x1E5D0, 0x1E5ED, kL},
    {0x1E5F0, 0x1E5F0, kL},
    {0x1E5F1, 0x1E5FA, kN},
    {0x2B739, 0x2B739, kL},
    {0x2EBF0, 0x2EE5D, kL},
    {0x31350, 0x323AF, kL},
};

const ClassRange* FindDifferent(char32_t code) {
  const ClassRange* range =
      std::lower_bound(std::begin(kDifferent), std::end(kDifferent), code,
                       [](const ClassRange& r, char32_t c) { return r.last < c; });
  return range != std::end(kDifferent) && range->first <= code ? range : nullptr;
}

// A character of the class that every Unicode version knows, without case, of three or four bytes.
const char* Representative(CharClass char_class, size_t length) {
  if (char_class == CharClass::kOther) return "\xE2\x80\x8B";  // U+200B
  if (char_class == CharClass::kNumber)
    return length == 4 ? "\xF0\x9D\x9F\x98" : "\xE0\xA5\xA6";  // U+1D7D8, U+0966
  return length == 4 ? "\xF0\xA0\x80\x80" : "\xE4\xB8\x80";    // U+20000, U+4E00
}

// What matching needs; one per thread, so that threads share nothing.
struct MatchState {
  MatchState()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(size_t{32} << 10, size_t{64} << 20, nullptr)) {
    pcre2_jit_stack_assign(context, nullptr, stack);
    // Long runs need many steps where no JIT is available.
    pcre2_set_match_limit(context, 1'000'000'000);
    pcre2_set_heap_limit(context, 1u << 20);  // KiB
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};

}  // namespace

struct PreTokenizer::Step {
  std::unique_ptr<pcre2_code, CodeDeleter> regex;  // null: `literal`
  std::string literal;

  void Split(std::string_view text, std::vector<std::string_view>* pieces) const;
  void SplitRegex(std::string_view text, std::vector<std::string_view>* pieces) const;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

Status PreTokenizer::AddRegex(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  Step step;
  step.regex.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 nullptr));
  if (step.regex == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    return ModelError("the regular expression does not compile at character %d: %s", offset,
                      reinterpret_cast<const char*>(message));
  }
  // Where no JIT is available matching is interpreted: slower, the same result.
  pcre2_jit_compile(step.regex.get(), PCRE2_JIT_COMPLETE);
  steps_.push_back(std::move(step));
  return OkStatus();
}

void PreTokenizer::AddLiteral(std::string literal) {
  Step step;
  step.literal = std::move(literal);
  steps_.push_back(std::move(step));
}

std::vector<std::string_view> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    std::vector<std::string_view> finer;
    for (std::string_view piece : pieces) step.Split(piece, &finer);
    pieces = std::move(finer);
  }
  return pieces;
}

void PreTokenizer::Step::Split(std::string_view text, std::vector<std::string_view>* pieces) const {
  if (regex != nullptr) return SplitRegex(text, pieces);
  size_t done = 0;
  for (size_t at = text.find(literal); at != std::string_view::npos;
       at = text.find(literal, done)) {
    if (at > done) pieces->push_back(text.substr(done, at - done));
    pieces->push_back(text.substr(at, literal.size()));
    done = at + literal.size();
  }
  if (done < text.size()) pieces->push_back(text.substr(done));
}

void PreTokenizer::Step::SplitRegex(std::string_view text,
                                    std::vector<std::string_view>* pieces) const {
  std::string shadow;
  const std::string_view subject = MakeRegexShadow(text, &shadow) ? std::string_view(shadow) : text;
  static thread_local MatchState state;
  const PCRE2_SIZE* span = pcre2_get_ovector_pointer(state.data);
  size_t done = 0;   // up to here the text is in pieces
  size_t start = 0;  // the next match is looked for from here
  while (start < text.size()) {
    const int found =
        pcre2_match(regex.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(),
                    start, PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (found < 0) {
      if (found != PCRE2_ERROR_NOMATCH) {
        log::Error(
            "tokenizer: the split expression gave up (PCRE2 error %d); %d bytes stay one piece",
            found, text.size() - done);
      }
      break;
    }
    if (span[0] > done) pieces->push_back(text.substr(done, span[0] - done));
    if (span[1] > span[0]) pieces->push_back(text.substr(span[0], span[1] - span[0]));
    done = span[1];
    // An empty match cuts there and the search goes on behind the next character.
    start = span[1] > span[0]
                ? span[1]
                : span[1] + (span[1] < text.size() ? DecodeUtf8(text, span[1]).length : 1);
  }
  if (done < text.size()) pieces->push_back(text.substr(done));
}

bool MakeRegexShadow(std::string_view text, std::string* shadow) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    // All of them begin with E1 (U+1000-1FFF), EA (U+A000-AFFF) or a byte of four-byte characters.
    const unsigned char lead = static_cast<unsigned char>(text[at]);
    if (lead != 0xE1 && lead < 0xEA) {
      ++at;
      continue;
    }
    const Utf8Char next = DecodeUtf8(text, at);
    if (const ClassRange* range = FindDifferent(next.code); range != nullptr) {
      if (!any) shadow->assign(text);
      any = true;
      shadow->replace(at, next.length, Representative(range->char_class, next.length));
    }
    at += next.length;
  }
  return any;
}

}  // namespace lockstep
