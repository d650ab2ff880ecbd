#include "launcher/agree.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace lockstep {
namespace {

// One rank's answer as it travels: fixed size, so that one gather is enough.
struct Answer {
  int32_t kind = 0;  // ErrorKind, 0: fine
  uint32_t length = 0;
  char text[1016] = {};
};
static_assert(sizeof(Answer) == 1024);

Answer MakeAnswer(int32_t kind, const std::string& text) {
  Answer answer;
  answer.kind = kind;
  answer.length = static_cast<uint32_t>(std::min(text.size(), sizeof(answer.text)));
  std::memcpy(answer.text, text.data(), answer.length);
  return answer;
}

std::string TextOf(const Answer& answer) {
  return std::string(answer.text, std::min<size_t>(answer.length, sizeof(answer.text)));
}

bool AllSay(const std::vector<Answer>& answers, const std::string& text) {
  return std::all_of(answers.begin(), answers.end(),
                     [&](const Answer& answer) { return TextOf(answer) == text; });
}

StatusOr<std::vector<Answer>> Gather(Group& group, const Answer& mine) {
  std::vector<Answer> all(group.size());
  LOCKSTEP_RETURN_IF_ERROR(
      AllGather(group, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
  return all;
}

}  // namespace

Status AgreeThatOk(Group& group, const Membership& membership, const Status& mine) {
  if (group.size() == 1) return mine;
  const int32_t kind = mine.ok() ? 0 : static_cast<int32_t>(KindOf(mine));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<Answer> all,
                            Gather(group, MakeAnswer(kind, MessageOf(mine))));
  for (int rank = 0; rank < group.size(); ++rank) {
    if (all[rank].kind == 0) continue;
    if (AllSay(all, TextOf(all[rank]))) return mine;
    const int32_t bounded = std::clamp<int32_t>(all[rank].kind, 1, 6);
    return MakeError(static_cast<ErrorKind>(bounded),
                     membership.ranks()[rank].Name() + ": " + TextOf(all[rank]));
  }
  return OkStatus();
}

Status AgreeOnValue(Group& group, const Membership& membership, const Setting& mine) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<Answer> all,
                            Gather(group, MakeAnswer(0, mine.value)));
  for (int rank = 1; rank < group.size(); ++rank) {
    if (TextOf(all[rank]) == TextOf(all[0])) continue;
    return UsageError("%s differs: %s has %s, %s has %s; %s", mine.name,
                      membership.ranks()[0].Name(), TextOf(all[0]), membership.ranks()[rank].Name(),
                      TextOf(all[rank]), mine.remedy);
  }
  return OkStatus();
}

StatusOr<int64_t> AgreeOnSmallest(Group& group, int64_t mine) {
  std::vector<int64_t> all(group.size());
  LOCKSTEP_RETURN_IF_ERROR(
      AllGather(group, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
  return *std::min_element(all.begin(), all.end());
}

StatusOr<int> CountAlikeHere(Group& group, const Membership& membership, const std::string& mine) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<Answer> all, Gather(group, MakeAnswer(0, mine)));
  const std::string& here = membership.ranks()[group.rank()].host;
  int count = 0;
  for (int rank = 0; rank < group.size(); ++rank)
    count += TextOf(all[rank]) == mine && membership.ranks()[rank].host == here ? 1 : 0;
  return count;
}

Status WaitForSlowDisks(Group& group) {
  const std::byte word{1};
  std::vector<std::byte> words(static_cast<size_t>(group.size()));
  std::vector<std::span<const std::byte>> sends(words.size(), std::span(&word, 1));
  std::vector<std::span<std::byte>> receives;
  for (std::byte& from : words) receives.emplace_back(&from, 1);
  return AllToAll(group, sends, receives, Patience::kIdle);
}

}  // namespace lockstep
