#include "spin.h"

#ifdef __linux__
#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#endif

namespace bertfast {

#ifdef __linux__

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto INTERVAL = std::chrono::milliseconds(100);
// Of an interval, in which some task was ready and had no processor. A training alone has 0.1 at most, one beside a
// busy loop 0.4 at least, whether its threads spin or sleep (benchmarks: bertfast bench --beside).
constexpr double CROWDED = 0.2;
constexpr int CROWDED_INTERVALS = 2, FREE_INTERVALS = 5;  // in a row, before the threads are switched

// While one lives libgomp's threads sleep at once. They spin 300,000 turns, but 100 while the process has more OpenMP
// threads than it may use processors (gomp_throttled_spin_count_var, in libgomp's config/linux/wait.h). So a thread
// with a team of its own, all of it asleep, is the switch.
class SleepAtOnce {
 public:
  explicit SleepAtOnce(int threads)
      : thread_([this, threads] {
          pthread_setname_np(pthread_self(), "bertfast-team");
          // A barrier, since the compiler leaves out an empty region.
#pragma omp parallel num_threads(threads)
          {
#pragma omp barrier
          }
          std::unique_lock lock(mutex_);
          changed_.wait(lock, [this] { return ended_; });
        }) {}
  ~SleepAtOnce() {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;
};

// Microseconds in which some task was ready and had no processor, since the machine's start; -1 where it cannot be read.
long long stalled(const std::string &path) {
  char line[256] = "";
  std::FILE *file = std::fopen(path.c_str(), "r");
  if (!file) return -1;
  const char *total = std::fgets(line, sizeof line, file) ? std::strstr(line, "total=") : nullptr;
  std::fclose(file);
  return total ? std::atoll(total + std::strlen("total=")) : -1;
}

int processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) ? static_cast<int>(std::thread::hardware_concurrency()) : CPU_COUNT(&set);
}

std::atomic<bool> watching{false}, sleeping{false};
std::atomic<long> switches{0};
std::atomic<int> team{1};  // threads of the ops
std::atomic<bool> to_start{false};  // a watch is due, by the next op of several threads
std::string pressure_file;          // read and written under the interpreter's lock alone

void watch(const std::string &path) try {
  pthread_setname_np(pthread_self(), "bertfast-watch");
  sigset_t all;  // the process's signals are for its own threads
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  std::unique_ptr<SleepAtOnce> held;
  int in_a_row = 0;
  auto last = Clock::now();
  long long before = stalled(path);
  while (before >= 0) {
    std::this_thread::sleep_for(INTERVAL);
    const auto now = Clock::now();
    const double interval = std::chrono::duration<double, std::micro>(now - last).count();
    const long long after = stalled(path);
    const bool crowded = static_cast<double>(after - before) > CROWDED * interval;
    last = now;
    before = after;
    in_a_row = crowded == !held ? in_a_row + 1 : 0;
    if (in_a_row < (held ? FREE_INTERVALS : CROWDED_INTERVALS)) continue;
    in_a_row = 0;
    if (held) {
      held.reset();
    } else {
      // libgomp counts the threads of both teams, the thread that starts the second one left out.
      held = std::make_unique<SleepAtOnce>(std::max(2, processors() - team + 2));
      ++switches;
    }
    sleeping = held != nullptr;
  }
  sleeping = false;
} catch (const std::system_error &) {  // no further thread is to be had: those that there are wait as they do
  sleeping = false;
}

}  // namespace

void watch_pressure(int threads) noexcept {
  team.store(threads, std::memory_order_relaxed);
  if (!to_start.load(std::memory_order_relaxed) || !to_start.exchange(false)) return;
  try {
    std::thread(watch, pressure_file).detach();
    watching = true;
  } catch (const std::system_error &) {  // no further thread is to be had, now or later
  }
}

void set_pressure_file(const std::string &path) {
  // A child made by fork has none of its parent's threads; its first op starts a watch of its own.
  static const int once = pthread_atfork(nullptr, nullptr, [] {
    watching = sleeping = false;
    to_start = !pressure_file.empty();
  });
  static_cast<void>(once);
  pressure_file = path;
  to_start = !path.empty() && !watching;
}

SpinState spin_state() noexcept { return {watching, sleeping, switches}; }

#else

void watch_pressure(int) noexcept {}
void set_pressure_file(const std::string &) {}
SpinState spin_state() noexcept { return {false, false, 0}; }

#endif

}  // namespace bertfast
