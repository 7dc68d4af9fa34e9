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
constexpr float kSpike = 4.5f;    // times a group's root mean square: from there on its largest value is a spike
constexpr float kFineSteps = 250.0f;  // of one coarse step: half of one, and a little for rounding, fits a signed byte

// What goes with a token's codes of one group. The last five are int32: what codes from -8, -128 or -32 on have too
// much, the last of these for each half of the group on its own; and whether the group has fine codes.
enum Scales { kScale, kScaledSum, kSum8, kSum128, kFirstSum32, kSecondSum32, kHasFine, kScalesFloats };

// Integers of one tile of T tokens:
//     codes:  [group][T][64 bytes]         scales: [group][kScalesFloats][T]
struct Codes {
    uint8_t* codes = nullptr;
    float* scales = nullptr;

    Codes after(size_t tokens, size_t groups) const {
        return {codes + tokens * groups * kCodesBytes, scales + tokens * groups * kScalesFloats};
    }
};

// A tile's activations are the sum of both. Fine codes are there where a token of the tile has kHasFine in the group;
// beside it, tokens without have fine scales of 0.
struct Tile {
    Codes coarse, fine;
};

// Tiles of 8 tokens, one after the other; the last may be smaller. Fast mode has no fine codes.
struct Activations {
    Codes coarse, fine;
    int num_tokens = 0;
    int groups = 0;

    static size_t codes_bytes(size_t tokens, size_t groups) { return tokens * groups * kCodesBytes; }
    static size_t scales_bytes(size_t tokens, size_t groups) { return tokens * groups * kScalesFloats * sizeof(float); }

    int num_tiles() const { return (num_tokens + kTile - 1) / kTile; }
    int tile_size(int tile) const { return std::min(kTile, num_tokens - tile * kTile); }
    Tile tile(int index) const {
        const size_t before = size_t(index) * kTile;
        return {coarse.after(before, groups), fine.codes ? fine.after(before, groups) : fine};
    }
};

// Where one token's integers of one group go, in a tile of `size` tokens.
struct Place {
    uint8_t* codes;
    float* scales;
    int size;

    Place(const Codes& tile, int tile_size, int group, int token)
        : codes(tile.codes + (group * tile_size + token) * kCodesBytes),
          scales(tile.scales + group * kScalesFloats * tile_size + token), size(tile_size) {}
    void put(Scales which, float value) const { scales[which * size] = value; }
    void put(Scales which, int32_t value) const { std::memcpy(scales + which * size, &value, 4); }
};

// Stores 32 integers that stand for q * scale.
template <bool Exact>
inline void store_group(const Place& to, float scale, Ints q0, Ints q1) {
    const int32_t sum0 = sum_lanes(q0), sum1 = sum_lanes(q1), sum = sum0 + sum1;
    store_codes<Exact>(to.codes, q0, q1);
    to.put(kScale, scale);
    to.put(kScaledSum, scale * static_cast<float>(sum));
    to.put(kSum8, 8 * sum);
    to.put(kSum128, 128 * sum);
    to.put(kFirstSum32, 32 * sum0);
    to.put(kSecondSum32, 32 * sum1);
}

// Quantises columns 32 * group .. of a token: q = round(x / scale), with |q| at most 127 * 256 (exact) or 127 (fast). One
// value much larger than the others makes the steps too long for those: in exact mode what is left of such a group is
// quantised once more, with 250 fine steps in a coarse one.
template <bool Exact>
inline void quantize_group(const Activations& to, int token, int group, Floats x0, Floats x1) {
    constexpr float kLargest = Exact ? 127.0f * 256.0f : 127.0f;
    const float largest = max_lanes(max(abs(x0), abs(x1)));
    const float scale = largest / kLargest;
    const float inverse = largest > kTooSmall ? kLargest / largest : 0.0f;
    const Floats y0 = x0 * splat(inverse), y1 = x1 * splat(inverse);
    const Ints q0 = round_to_int(y0), q1 = round_to_int(y1);
    const int size = to.tile_size(token / kTile);
    const Tile tile = to.tile(token / kTile);
    const Place coarse(tile.coarse, size, group, token % kTile);
    store_group<Exact>(coarse, scale, q0, q1);
    if constexpr (Exact) {
        const Place fine(tile.fine, size, group, token % kTile);
        const float squares = sum_lanes(fma(y0, y0, y1 * y1));
        const bool has_spike = inverse > 0.0f && squares * (kSpike * kSpike) < kGroup * kLargest * kLargest;
        coarse.put(kHasFine, int32_t{has_spike});
        if (!has_spike) {
            fine.put(kScale, 0.0f);
            fine.put(kScaledSum, 0.0f);
            return;
        }
        const Floats left0 = fma(to_float(q0), splat(-scale), x0), left1 = fma(to_float(q1), splat(-scale), x1);
        const Floats finer = splat(inverse * kFineSteps);
        store_group<false>(fine, scale / kFineSteps, round_to_int(left0 * finer), round_to_int(left1 * finer));
    }
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
