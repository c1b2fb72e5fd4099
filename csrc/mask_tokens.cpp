// Choice and hiding of the tokens to predict: see kernels/mask_tokens.py.
#include "kernels.h"

#include <algorithm>

#include "philox.h"

namespace bertfast::BERTFAST_ISA {

// The words of the counters (low, high word of `counters[i]`, 0, 1).
static void token_words(uint64_t seed, const uint64_t *counters, PhiloxBlock &x) {
  for (int i = 0; i < kBlock; ++i) {
    x.c0[i] = static_cast<uint32_t>(counters[i]);
    x.c1[i] = static_cast<uint32_t>(counters[i] >> 32);
    x.c2[i] = 0;
    x.c3[i] = 1;
  }
  philox_rounds(seed, x);
}

void mask_tokens(const MaskTokens &a) {
#pragma omp parallel for num_threads(a.threads) schedule(static) if (a.tokens > 4096)
  for (int64_t start = 0; start < a.tokens; start += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, a.tokens - start);
    uint64_t own[kBlock] = {}, choice[kBlock] = {};
    for (int64_t i = 0; i < count; ++i) {
      own[i] = a.counters ? a.counters[start + i] : start + i;
      if (a.choices) choice[i] = a.choices[start + i];
    }
    PhiloxBlock words, first;
    token_words(a.seed, own, words);
    if (a.choices) token_words(a.seed, choice, first);
    const uint32_t *draw = a.choices ? first.c0 : words.c0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = a.ids[start + i];
      const bool chosen = !a.special[start + i] && draw[i] < a.choose_below;
      const int64_t other = a.first_random_id + static_cast<int64_t>(words.c2[i] * a.random_ids >> 32);
      const int64_t hidden = words.c1[i] < a.mask_below ? a.mask_id : words.c1[i] < a.random_below ? other : id;
      a.masked[start + i] = chosen ? hidden : id;
      a.labels[start + i] = chosen ? id : a.ignore_index;
    }
  }
}

}  // namespace bertfast::BERTFAST_ISA
