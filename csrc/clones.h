// Loops compiled for several CPUs, the best chosen when the program starts.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EMANEST_TARGETS "default", "arch=x86-64-v3", "arch=x86-64-v4"
#define EMANEST_CLONES __attribute__((target_clones(EMANEST_TARGETS)))
#else
#define EMANEST_TARGETS "default"
#define EMANEST_CLONES
#endif
