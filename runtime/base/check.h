// Bugs stop: LOCKSTEP_CHECK is for what our own code guarantees, never for input.
#pragma once

namespace lockstep {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}

#define LOCKSTEP_CHECK(condition)                                                              \
  (__builtin_expect(!(condition), 0) ? ::lockstep::CheckFailed(__FILE__, __LINE__, #condition) \
                                     : (void)0)
