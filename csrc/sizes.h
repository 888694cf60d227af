// How much state and how many numbers a call may have: as much as the largest rules of rules.h.
#pragma once

#include <algorithm>

#include "rules.h"

namespace emanest {

// the most state, and the most numbers, of a rule of a table
template <class Table>
struct Most;
template <class... Rules>
struct Most<std::variant<Rules...>> {
  static constexpr int states = std::max({Rules::states...});
  static constexpr int numbers = std::max({Rules::numbers...});
};

// columns of a call: state, and the factors that a row rule finds
constexpr int kStates = std::max({Most<Base>::states + Most<Lookahead>::states,
                                  Most<Momentum>::states, Most<RowRule>::states + 1,
                                  Most<Point>::states});
// numbers of a call: gradients have a factor besides the rules' own
constexpr int kNumbers = std::max({1 + Most<Base>::numbers + Most<Lookahead>::numbers,
                                   1 + Most<Momentum>::numbers, Most<RowRule>::numbers,
                                   Most<Point>::numbers});

}  // namespace emanest
