// Tokens' activations, quantised per group of 32, in the order in which the linear kernels read them.
#pragma once
#include <algorithm>
#include <cstring>

#include "vec.h"
#include "weights.h"

namespace braid {

constexpr int kTile = 8;          // tokens that one pass over a weight panel serves
constexpr float kTooSmall = 1e-30f;  // of a largest value: its reciprocal would overflow
constexpr int kCodesBytes = 64;   // a token's codes of one group, see store_codes

// What goes with a token's codes of one group. The last four are int32: what codes that start at -8, -128 or -32 have too
// much, the last for each half of the group on its own.
enum Scales { kScale, kScaledSum, kSum8, kSum128, kFirstSum32, kSecondSum32, kScalesFloats };

// Tiles of 8 tokens (the last may be smaller, of T tokens), one after the other:
//     codes:  [group][T][64 bytes]         scales: [group][kScalesFloats][T]
struct Activations {
    uint8_t* codes = nullptr;
    float* scales = nullptr;
    int num_tokens = 0;
    int groups = 0;

    static size_t codes_bytes(size_t tokens, size_t groups) { return tokens * groups * kCodesBytes; }
    static size_t scales_bytes(size_t tokens, size_t groups) { return tokens * groups * kScalesFloats * sizeof(float); }

    int num_tiles() const { return (num_tokens + kTile - 1) / kTile; }
    int tile_size(int tile) const { return std::min(kTile, num_tokens - tile * kTile); }
    uint8_t* tile_codes(int tile) const { return codes + codes_bytes(size_t(tile) * kTile, groups); }
    float* tile_scales(int tile) const { return scales + size_t(tile) * kTile * groups * kScalesFloats; }
};

// Quantises columns 32 * group .. of a token: q = round(x / scale), with |q| at most 127 * 256 (exact) or 127 (fast).
template <bool Exact>
inline void quantize_group(const Activations& to, int token, int group, Floats x0, Floats x1) {
    constexpr float kLargest = Exact ? 127.0f * 256.0f : 127.0f;
    const float largest = max_lanes(max(abs(x0), abs(x1)));
    const float scale = largest / kLargest;
    const float inverse = largest > kTooSmall ? kLargest / largest : 0.0f;
    const Ints q0 = round_to_int(x0 * splat(inverse)), q1 = round_to_int(x1 * splat(inverse));
    const int32_t sum0 = sum_lanes(q0), sum1 = sum_lanes(q1), sum = sum0 + sum1;
    const int tile = token / kTile, size = to.tile_size(tile);
    store_codes<Exact>(to.tile_codes(tile) + (group * size + token % kTile) * kCodesBytes, q0, q1);
    float* scales = to.tile_scales(tile) + group * kScalesFloats * size + token % kTile;
    scales[kScale * size] = scale;
    scales[kScaledSum * size] = scale * static_cast<float>(sum);
    const auto put = [&](Scales which, int32_t value) { std::memcpy(scales + which * size, &value, 4); };
    put(kSum8, 8 * sum);
    put(kSum128, 128 * sum);
    put(kFirstSum32, 32 * sum0);
    put(kSecondSum32, 32 * sum1);
}

// Quantises one token's `values` (32 * groups of them).
template <bool Exact>
inline void quantize_row(const Activations& to, int token, const float* values) {
    for (int g = 0; g < to.groups; g++)
        quantize_group<Exact>(to, token, g, load(values + g * kGroup), load(values + g * kGroup + kLanes));
}

// 1 / sqrt(mean(x^2) + eps); `size` is a multiple of 16.
inline float rms_scale(const float* x, int size, float eps) {
    Floats sum = zeros();
    for (int i = 0; i < size; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
    return 1.0f / __builtin_sqrtf(sum_lanes(sum) / static_cast<float>(size) + eps);
}

// RMS norm of one token's `x` and quantisation, in one pass after the sum.
template <bool Exact>
inline void norm_quantize_row(const Activations& to, int token, const float* x, const float* weight, float eps) {
    const Floats scale = splat(rms_scale(x, to.groups * kGroup, eps));
    for (int g = 0; g < to.groups; g++) {
        const float* xs = x + g * kGroup;
        const float* ws = weight + g * kGroup;
        quantize_group<Exact>(to, token, g, load(xs) * scale * load(ws),
                              load(xs + kLanes) * scale * load(ws + kLanes));
    }
}

inline void norm_row(float* out, const float* x, const float* weight, int size, float eps) {
    const Floats scale = splat(rms_scale(x, size, eps));
    for (int i = 0; i < size; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
}

}  // namespace braid
