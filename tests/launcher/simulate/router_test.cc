#include "launcher/simulate/router.h"

#include <gtest/gtest.h>

#include <set>

namespace lockstep {
namespace {

TEST(Router, TheReplicaWithTheFewestTokensGetsTheNextRequest) {
  Router router(3, false);
  EXPECT_EQ(router.Choose(5), 0);
  router.Begin(0, 100);
  EXPECT_EQ(router.Choose(5), 1);
  router.Begin(1, 50);
  router.Begin(2, 60);
  EXPECT_EQ(router.Choose(5), 1);
  router.End(0, 100);
  EXPECT_EQ(router.Choose(5), 0);
  EXPECT_EQ(router.outstanding(2), 60);
}

TEST(Router, GroupsStayAtHomeUntilItHasMuchMoreToDo) {
  Router router(8, true);
  std::set<int> homes;
  for (int64_t group = 0; group < 64; ++group) homes.insert(router.Choose(group));
  EXPECT_GE(homes.size(), 7u);  // 64 of 8 miss one with 0.02 %
  const int home = router.Choose(3);
  router.Begin(home, Router::kPatience);
  EXPECT_EQ(router.Choose(3), home);
  router.Begin(home, 1);
  EXPECT_NE(router.Choose(3), home);
  EXPECT_NE(router.Choose(-1), home);
}

}  // namespace
}  // namespace lockstep
