// Choosing tokens from rows of logits, on one thread. The specification is kernels/sampling.py.
#pragma once

#include <cstdint>

namespace braid {

// What one row asks for; kernels/cpu/sampling.py packs the same fields in the same order. No field needs padding.
struct SampleRow {
  double uniform;      // in [0, 1)
  double temperature;  // under 1e-5 is greedy
  double top_p;
  double min_p;
  const int32_t* seen;  // (num_seen) distinct tokens that penalties look at
  const int32_t* counts;  // (num_seen) how often each was generated
  const int32_t* bias_ids;  // (num_bias)
  const float* bias;  // (num_bias)
  const int32_t* forbidden;  // (num_forbidden)
  int32_t num_seen;
  int32_t num_bias;
  int32_t num_forbidden;
  int32_t top_k;    // 0 keeps all
  int32_t num_top;  // -1: no logprobs
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
};

enum SampleStatus : int32_t { kSampled = 0, kNotADistribution = 1, kNothingAllowed = 2 };

constexpr int kMaxTop = 20;

// What comes back for one row; numpy reads it as a structured array.
struct SampleOut {
  int32_t token_id;
  int32_t status;
  int32_t num_top;
  float logprob;
  int32_t top_ids[kMaxTop];
  float top_logprobs[kMaxTop];
};

}  // namespace braid

extern "C" {

// Bytes of the workspace for rows of this length; it must be aligned to 64 bytes and used by one thread at a time.
__attribute__((visibility("default"))) int64_t braid_sample_workspace_bytes(int32_t vocab_size);

// Choose a token for each row. `logits` is (num_rows, vocab_size) with `row_stride` floats from row to row.
__attribute__((visibility("default"))) void braid_sample(const float* logits, int64_t row_stride, int32_t vocab_size,
                                                         const braid::SampleRow* rows, braid::SampleOut* outs,
                                                         int32_t num_rows, void* workspace);
}
