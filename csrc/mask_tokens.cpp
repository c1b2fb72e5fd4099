// Choice and hiding of the tokens to predict: see kernels/mask_tokens.py.
#include "kernels.h"

#include <algorithm>

#include "philox.h"

namespace bertfast::BERTFAST_ISA {

// The words of the counters (low, high word of `counters[i]`, 0, 1).
static void token_words(uint64_t seed, const uint64_t *counters, PhiloxBlock &x) {
  for (int i = 0; i < kBlock; ++i) {
    const int v = i / PhiloxBlock::kPerVector, lane = i % PhiloxBlock::kPerVector;
    x.c0[v][lane] = counters[i];
    x.c1[v][lane] = counters[i] >> 32;
    x.c2[v][lane] = 0;
    x.c3[v][lane] = 1;
  }
  philox_rounds(seed, kRounds, x);
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
    const wide *draw = a.choices ? first.c0 : words.c0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = a.ids[start + i];
      const bool chosen = !a.special[start + i] && PhiloxBlock::word(draw, i) < a.choose_below;
      const uint32_t action = PhiloxBlock::word(words.c1, i), random = PhiloxBlock::word(words.c2, i);
      const int64_t other = a.first_random_id + static_cast<int64_t>(random * a.random_ids >> 32);
      const int64_t hidden = action < a.mask_below ? a.mask_id : action < a.random_below ? other : id;
      a.masked[start + i] = chosen ? hidden : id;
      a.labels[start + i] = chosen ? id : a.ignore_index;
    }
  }
}

}  // namespace bertfast::BERTFAST_ISA
