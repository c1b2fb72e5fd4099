// How OpenMP's threads wait: they spin while this process has the processors to itself, and sleep while others want
// them.
#pragma once

#include <string>

namespace bertfast {

// Names the kernel's file of Pressure Stall Information that is watched from the next op of several threads on; empty:
// none is.
void set_pressure_file(const std::string &path);

// Starts the watch over that file, once a process, for ops of so many threads.
void watch_pressure(int threads) noexcept;

struct SpinState {
  bool watching, sleeping;  // sleeping: others want the processors, so that threads sleep at once
  long switches;            // how often that began
};
SpinState spin_state() noexcept;

}  // namespace bertfast
