// SPDX-License-Identifier: MIT
// The bindings as one source: torch's headers take more time than all the rest, and are read once.
#include "../csrc/bindings.cpp"
#include "../csrc/gather.cpp"
// whose build nobody asks for
#define EMANEST_HASH ""
#define EMANEST_TORCH ""
#include "../csrc/info.cpp"
#include "../csrc/target.cpp"
