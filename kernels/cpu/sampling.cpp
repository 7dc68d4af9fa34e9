// Token sampling without sorting the vocabulary. See sampling.h for the contract, kernels/sampling.py for what is right.
//
// One pass finds the maximum of every chunk of 64 logits. The k-th largest chunk maximum is a lower bound of the k-th
// largest logit, so the k likeliest tokens are found by looking into little more than k chunks, and only they are
// sorted. Without top-k, a second pass turns logits into weights exp((z - max) / T) and adds them up; if the 64
// likeliest tokens do not hold the answer (a flat distribution), `crossing` narrows the range of logits that does,
// four-fold a pass, until few enough are left to sort. Lanes are added in one order, so a row's result depends on the
// row alone.

#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

// Vectors pass between functions that are always inlined, so no calling convention is at stake.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace braid {
namespace {

// As wide as the machine's registers: wider vectors are split by the compiler, with much loss.
#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float Floats4 __attribute__((vector_size(16)));

constexpr int kChunk = 64;        // logits per chunk maximum
constexpr int kFewTokens = 64;    // how many of the likeliest are tried before narrowing
constexpr int kSortable = 256;    // a range with so few tokens is sorted
constexpr int kSplits = 4;        // thresholds per narrowing pass
constexpr int kMaxNarrowings = 13; // 4^13: the range is then below float32's resolution
constexpr int kFlush = 64;        // vectors added in float32 before going to double
constexpr double kTailRange = 30; // narrowing ends at e^-30 of the maximum: all that lies below weighs under 1e-7
constexpr float kInfinity = std::numeric_limits<float>::infinity();

#define BRAID_INLINE static inline __attribute__((always_inline))

BRAID_INLINE Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
BRAID_INLINE void store(float* p, Floats x) { *reinterpret_cast<Floats*>(p) = x; }
BRAID_INLINE Floats fill(float x) { return Floats{} + x; }

BRAID_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

BRAID_INLINE float largest_lane(Floats x) {
  Floats4 quarters[kLanes / 4];
  std::memcpy(quarters, &x, sizeof x);
  for (int i = kLanes / 8; i > 0; i /= 2) {
    for (int j = 0; j < i; ++j) quarters[j] = quarters[j] > quarters[i + j] ? quarters[j] : quarters[i + j];
  }
  const Floats4 four = quarters[0];
  return std::max(std::max(four[0], four[1]), std::max(four[2], four[3]));
}

BRAID_INLINE double sum_lanes(Floats x) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// e^x for x <= 0, within 2 ulp; 0 below -87, where float32 ends. Taylor's polynomial on [-ln 2 / 2, ln 2 / 2].
BRAID_INLINE Floats exp_nonpositive(Floats x) {
  const Floats lowest = fill(-87.0f);
  const Ints is_zero = x < lowest;
  x = is_zero ? lowest : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = x * 1.44269504f + round;
  const Floats n = shifted - round;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Floats p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Ints bits = __builtin_convertvector(n, Ints);
  bits = (bits + 127) << 23;  // 2^n
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return is_zero ? Floats{} : p * scale;
}

// A token in the order of sampling: a larger key is more probable, and of equal logits the lower id.
typedef uint64_t Key;

inline Key make_key(float z, int32_t id) {
  z += 0.0f;  // -0 equals 0
  uint32_t bits;
  std::memcpy(&bits, &z, sizeof bits);
  bits ^= (bits >> 31) ? 0xFFFFFFFFu : 0x80000000u;
  return (static_cast<Key>(bits) << 32) | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

inline int32_t key_id(Key key) { return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key)); }

// Tokens in ascending id, padded to whole vectors with z = -inf and weight 0. `ids` is null for a whole row.
struct Tokens {
  const float* z;
  const float* weights;
  const int32_t* ids;
  int32_t count;

  int32_t padded() const { return (count + kLanes - 1) / kLanes * kLanes; }
  int32_t id(int32_t i) const { return ids ? ids[i] : i; }
};

struct TokenBuffer {
  float* z;
  float* weights;
  int32_t* ids;
};

struct Workspace {
  float* row;      // a copy of the logits that may be changed
  float* weights;  // exp((z - max) / T) of the row
  float* maxima;   // of each chunk
  float* ordered_maxima;
  Key* keys;
  TokenBuffer buffers[2];
};

int32_t padded_size(int32_t vocab_size) { return (vocab_size + kChunk - 1) / kChunk * kChunk; }

// Lay the workspace out from `base`; returns its size. With base 0 only the size means anything.
int64_t lay_out(uintptr_t base, int32_t vocab_size, Workspace* space) {
  const int64_t size = padded_size(vocab_size) + kLanes;  // compaction may write one vector past the end
  uintptr_t next = base;
  auto take = [&next](int64_t bytes) {
    const uintptr_t start = next;
    next += (bytes + 63) / 64 * 64;
    return start;
  };
  space->row = reinterpret_cast<float*>(take(size * 4));
  space->weights = reinterpret_cast<float*>(take(size * 4));
  space->maxima = reinterpret_cast<float*>(take(size / kChunk * 4));
  space->ordered_maxima = reinterpret_cast<float*>(take(size / kChunk * 4));
  space->keys = reinterpret_cast<Key*>(take(size * 8));
  for (TokenBuffer& buffer : space->buffers) {
    buffer.z = reinterpret_cast<float*>(take(size * 4));
    buffer.weights = reinterpret_cast<float*>(take(size * 4));
    buffer.ids = reinterpret_cast<int32_t*>(take(size * 4));
  }
  return static_cast<int64_t>(next - base);
}

// One row of logits whose chunk maxima are known.
struct Row {
  const float* z;  // padded to whole chunks
  int32_t size;    // with the padding
  int32_t vocab_size;
  float largest;
  bool has_nan;

  bool is_distribution() const { return !has_nan && largest < kInfinity && largest > -kInfinity; }
};

Row scan(const float* z, int32_t vocab_size, const Workspace& space) {
  Row row{z, padded_size(vocab_size), vocab_size, -kInfinity, false};
  Ints is_nan{};
  for (int32_t start = 0; start < row.size; start += kChunk) {
    Floats chunk = fill(-kInfinity);
#pragma GCC unroll 8
    for (int i = 0; i < kChunk; i += kLanes) {
      const Floats x = load(z + start + i);
      is_nan |= x != x;
      chunk = larger(chunk, x);
    }
    const float chunk_largest = largest_lane(chunk);
    space.maxima[start / kChunk] = chunk_largest;
    row.largest = std::max(row.largest, chunk_largest);
  }
  for (int i = 0; i < kLanes; ++i) row.has_nan |= is_nan[i] != 0;
  return row;
}

// The first token of the largest logit.
int32_t greedy(const Row& row, const Workspace& space) {
  int32_t id = 0;
  while (space.maxima[id / kChunk] != row.largest) id += kChunk;
  while (row.z[id] != row.largest) ++id;
  return id;
}

// Write e^((z - max) / T) of the whole row to `weights`; returns the sum.
double exponentiate(const Row& row, double temperature, float* weights) {
  const Floats largest = fill(row.largest), scale = fill(static_cast<float>(1 / temperature));
  double sum = 0;
  for (int32_t start = 0; start < row.size;) {
    Floats block{};
    const int32_t end = std::min(row.size, start + kFlush * kLanes);
    for (; start < end; start += kLanes) {
      const Floats weight = exp_nonpositive((load(row.z + start) - largest) * scale);
      store(weights + start, weight);
      block += weight;
    }
    sum += sum_lanes(block);
  }
  return sum;
}

// Put the keys of the `k` likeliest tokens, in descending order, into `space.keys`; returns how many those are.
int32_t likeliest(const Row& row, int32_t k, const Workspace& space) {
  const int32_t num_chunks = row.size / kChunk;
  k = std::min(k, row.vocab_size);
  float threshold = -kInfinity;
  if (k <= num_chunks) {
    std::copy(space.maxima, space.maxima + num_chunks, space.ordered_maxima);
    std::nth_element(space.ordered_maxima, space.ordered_maxima + k - 1, space.ordered_maxima + num_chunks,
                     std::greater<float>());
    threshold = space.ordered_maxima[k - 1];
  }
  Key* end = space.keys;
  for (int32_t chunk = 0; chunk < num_chunks; ++chunk) {
    if (space.maxima[chunk] < threshold) continue;
    const int32_t stop = std::min((chunk + 1) * kChunk, row.vocab_size);
    for (int32_t id = chunk * kChunk; id < stop; ++id) {
      if (row.z[id] >= threshold) *end++ = make_key(row.z[id], id);
    }
  }
  if (end - space.keys > k) std::nth_element(space.keys, space.keys + k, end, std::greater<Key>());
  std::sort(space.keys, space.keys + k, std::greater<Key>());
  return k;
}

struct Crossing {
  Key key;         // the token
  double through;  // weight of all tokens down to this one, it included
};

// Walk `n` sorted keys until the weights pass `target`; the last token of positive weight if they never do.
Crossing walk(const Key* keys, int32_t n, const Tokens& tokens, const float* weight_of_key, double before,
              double target) {
  Crossing last{keys[0], before};
  for (int32_t i = 0; i < n; ++i) {
    const double weight = weight_of_key ? weight_of_key[i] : tokens.weights[key_id(keys[i])];
    if (weight <= 0) break;
    last = {keys[i], last.through + weight};
    if (last.through > target) break;
  }
  return last;
}

// Copy the tokens with low <= z < high to `out`, in their order; returns them.
Tokens tokens_between(const Tokens& tokens, float low, float high, const TokenBuffer& out) {
  int32_t n = 0;
#ifdef __AVX512F__
  const __m512 lows = _mm512_set1_ps(low), highs = _mm512_set1_ps(high);
  __m512i positions = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int32_t i = 0; i < tokens.count; i += kLanes) {
    const __m512 z = _mm512_loadu_ps(tokens.z + i);
    const __m512i ids = tokens.ids ? _mm512_loadu_si512(tokens.ids + i) : positions;
    const __mmask16 inside =
        _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(z, lows, _CMP_GE_OQ), z, highs, _CMP_LT_OQ);
    _mm512_storeu_ps(out.z + n, _mm512_maskz_compress_ps(inside, z));
    _mm512_storeu_ps(out.weights + n, _mm512_maskz_compress_ps(inside, _mm512_loadu_ps(tokens.weights + i)));
    _mm512_storeu_si512(out.ids + n, _mm512_maskz_compress_epi32(inside, ids));
    n += __builtin_popcount(inside);
    positions = _mm512_add_epi32(positions, _mm512_set1_epi32(kLanes));
  }
#else
  for (int32_t i = 0; i < tokens.count; ++i) {  // without a branch: which tokens are inside cannot be predicted
    const float z = tokens.z[i];
    out.z[n] = z;
    out.weights[n] = tokens.weights[i];
    out.ids[n] = tokens.id(i);
    n += (z >= low) & (z < high);
  }
#endif
  for (int32_t i = n; i % kLanes; ++i) {
    out.z[i] = -kInfinity;
    out.weights[i] = 0;
  }
  return {out.z, out.weights, out.ids, n};
}

// masses[j] = the weight of all tokens with z >= thresholds[j].
void masses_above(const Tokens& tokens, const float* thresholds, double* masses) {
  std::fill(masses, masses + kSplits, 0.0);
  const int32_t size = tokens.padded();
  for (int32_t start = 0; start < size;) {
    Floats block[kSplits] = {};
    const int32_t end = std::min(size, start + kFlush * kLanes);
    for (; start < end; start += kLanes) {
      const Floats z = load(tokens.z + start), weight = load(tokens.weights + start);
#pragma GCC unroll 8
      for (int j = 0; j < kSplits; ++j) block[j] += z >= thresholds[j] ? weight : Floats{};
    }
    for (int j = 0; j < kSplits; ++j) masses[j] += sum_lanes(block[j]);
  }
}

// The last token, in the order of sampling, with z >= threshold.
Key last_above(const Tokens& tokens, float threshold) {
  Key last = ~Key{0};
  for (int32_t i = 0; i < tokens.count; ++i) {
    if (tokens.z[i] >= threshold) last = std::min(last, make_key(tokens.z[i], tokens.id(i)));
  }
  return last;
}

// The token at which the weights, added from the likeliest down, pass `target`. `largest` is the largest z; tokens
// under `lowest` are left out. Where rounding alone carries the target past all weights, it is the last token.
Crossing crossing(Tokens tokens, float largest, float lowest, double target, const Workspace& space) {
  float low = lowest, high = largest, outer = kInfinity;  // tokens are in [low, outer); high is where splits begin
  double before = 0;
  for (int level = 0; tokens.count > kSortable && level < kMaxNarrowings; ++level) {
    float thresholds[kSplits];
    double masses[kSplits];
    for (int j = 0; j < kSplits; ++j) thresholds[j] = high + (low - high) * (j + 1) / kSplits;
    thresholds[kSplits - 1] = low;
    masses_above(tokens, thresholds, masses);
    int j = 0;
    while (j < kSplits && before + masses[j] <= target) ++j;
    if (j == kSplits) return {last_above(tokens, low), before + masses[kSplits - 1]};
    if (j > 0) {
      before += masses[j - 1];
      outer = high = thresholds[j - 1];
    }
    low = thresholds[j];
    tokens = tokens_between(tokens, low, outer, space.buffers[level % 2]);
  }
  for (int32_t i = 0; i < tokens.count; ++i) space.keys[i] = make_key(tokens.z[i], i);
  std::sort(space.keys, space.keys + tokens.count, std::greater<Key>());
  Crossing found = walk(space.keys, tokens.count, tokens, nullptr, before, target);
  const int32_t position = key_id(found.key);
  found.key = make_key(tokens.z[position], tokens.id(position));
  return found;
}

// The smallest float that min-p keeps.
float min_p_threshold(const Row& row, const SampleRow& params) {
  if (params.min_p <= 0) return -kInfinity;
  const double exact = row.largest + params.temperature * std::log(params.min_p);
  const float rounded = static_cast<float>(exact);
  return rounded < exact ? std::nextafter(rounded, kInfinity) : rounded;
}

// So that "passes it" means "reaches top_p of the whole".
double top_p_target(const SampleRow& params, double sum) { return std::nextafter(params.top_p * sum, -1.0); }

// Draw from `n` sorted keys of which `weights` are known. Returns -1 if they are not all tokens (`is_all`) and the
// answer needs the others.
int32_t draw_sorted(const Row& row, const SampleRow& params, const Key* keys, const float* weights, int32_t n,
                    double sum, bool is_all) {
  const float threshold = min_p_threshold(row, params);
  const double nucleus = params.top_p < 1 ? top_p_target(params, sum) : std::numeric_limits<double>::infinity();
  double kept = 0;
  int32_t num_kept = 0;
  bool is_cut = is_all;
  for (; num_kept < n && kept <= nucleus; ++num_kept) {
    if (weights[num_kept] <= 0 || row.z[key_id(keys[num_kept])] < threshold) {
      is_cut = true;
      break;
    }
    kept += weights[num_kept];
  }
  is_cut |= kept > nucleus;
  if (!is_cut && (params.top_p < 1 || params.min_p > 0)) return -1;
  const double target = params.uniform * (is_cut ? kept : sum);
  const Crossing found = walk(keys, num_kept, {}, weights, 0, target);
  return is_cut || found.through > target ? key_id(found.key) : -1;
}

int32_t draw_from_top_k(const Row& row, const SampleRow& params, const Workspace& space) {
  const int32_t k = likeliest(row, params.top_k, space);
  double sum = 0;
  for (int32_t i = 0; i < k; ++i) {
    const double y = (static_cast<double>(row.z[key_id(space.keys[i])]) - row.largest) / params.temperature;
    sum += space.weights[i] = static_cast<float>(std::exp(y));
  }
  return draw_sorted(row, params, space.keys, space.weights, k, sum, true);
}

// Draw where the likeliest few were not enough.
int32_t draw_narrowing(const Row& row, const SampleRow& params, double sum, const Workspace& space) {
  const Tokens all{row.z, space.weights, nullptr, row.vocab_size};
  const float lowest = static_cast<float>(row.largest - kTailRange * params.temperature);
  double kept = sum;
  Key last = 0;
  if (params.top_p < 1) {
    const Crossing nucleus = crossing(all, row.largest, lowest, top_p_target(params, sum), space);
    kept = nucleus.through;
    last = nucleus.key;
  }
  const float threshold = min_p_threshold(row, params);
  if (params.min_p > 0) {
    float thresholds[kSplits];
    double masses[kSplits];
    std::fill(thresholds, thresholds + kSplits, threshold);
    masses_above(all, thresholds, masses);
    kept = std::min(kept, masses[0]);
  }
  const Crossing drawn = crossing(all, row.largest, lowest, params.uniform * kept, space);
  const int32_t id = key_id(std::max(drawn.key, last));
  return row.z[id] >= threshold ? id : key_id(last_above(all, threshold));  // rounding may carry the target past it
}

int32_t draw(const Row& row, const SampleRow& params, const Workspace& space) {
  if (params.top_k > 0 && params.top_k < row.vocab_size) return draw_from_top_k(row, params, space);
  const double sum = exponentiate(row, params.temperature, space.weights);
  const int32_t n = likeliest(row, kFewTokens, space);
  float weights[kFewTokens];
  for (int32_t i = 0; i < n; ++i) weights[i] = space.weights[key_id(space.keys[i])];
  const int32_t id = draw_sorted(row, params, space.keys, weights, n, sum, n == row.vocab_size);
  return id >= 0 ? id : draw_narrowing(row, params, sum, space);
}

// Apply penalties, bias and forbidden tokens to a copy of the logits.
void adjust(float* z, const SampleRow& params) {
  for (int32_t i = 0; i < params.num_seen; ++i) {
    float& logit = z[params.seen[i]];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= static_cast<float>(params.counts[i]) * params.frequency_penalty;
    if (params.counts[i] > 0) logit -= params.presence_penalty;
  }
  for (int32_t i = 0; i < params.num_bias; ++i) z[params.bias_ids[i]] += params.bias[i];
  for (int32_t i = 0; i < params.num_forbidden; ++i) z[params.forbidden[i]] = -kInfinity;
}

// Report the likeliest tokens of the model's own distribution. Returns the logarithm of the sum of e^z.
double report_top(const Row& row, int32_t num_top, const Workspace& space, SampleOut* out) {
  const double log_sum = row.largest + std::log(exponentiate(row, 1, space.weights));
  const int32_t n = num_top > 0 ? likeliest(row, num_top, space) : 0;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t id = key_id(space.keys[i]);
    if (row.z[id] == -kInfinity) break;
    out->top_ids[i] = id;
    out->top_logprobs[i] = static_cast<float>(row.z[id] - log_sum);
    out->num_top = i + 1;
  }
  return log_sum;
}

void sample_row(const float* logits, int32_t vocab_size, const SampleRow& params, const Workspace& space,
                SampleOut* out) {
  *out = SampleOut{};
  out->token_id = -1;
  const bool is_adjusted = params.num_seen || params.num_bias || params.num_forbidden;
  const float* z = logits;
  if (is_adjusted || vocab_size % kChunk) {
    std::copy(logits, logits + vocab_size, space.row);
    std::fill(space.row + vocab_size, space.row + padded_size(vocab_size), -kInfinity);
    z = space.row;
  }
  Row row = scan(z, vocab_size, space);
  if (!row.is_distribution()) {
    out->status = kNotADistribution;
    return;
  }
  const double log_sum = params.num_top >= 0 ? report_top(row, params.num_top, space, out) : 0;
  if (is_adjusted) {
    adjust(space.row, params);
    row = scan(space.row, vocab_size, space);
    if (!row.is_distribution()) {
      out->status = kNothingAllowed;
      return;
    }
  }
  out->token_id = params.temperature < 1e-5 ? greedy(row, space) : draw(row, params, space);
  out->logprob = static_cast<float>(logits[out->token_id] - log_sum);
}

}  // namespace
}  // namespace braid

int64_t braid_sample_workspace_bytes(int32_t vocab_size) {
  braid::Workspace space;
  return braid::lay_out(0, vocab_size, &space);
}

void braid_sample(const float* logits, int64_t row_stride, int32_t vocab_size, const braid::SampleRow* rows,
                  braid::SampleOut* outs, int32_t num_rows, void* workspace) {
  braid::Workspace space;
  braid::lay_out(reinterpret_cast<uintptr_t>(workspace), vocab_size, &space);
  for (int32_t i = 0; i < num_rows; ++i) {
    braid::sample_row(logits + i * row_stride, vocab_size, rows[i], space, &outs[i]);
  }
}
