// Sixteen lanes of float, and the functions of them that attention and activations need.
// Everything above this header is the same source for each instruction set, and gives the same bits.
#pragma once
#if defined(__AVX512VNNI__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#else
#error "the CPU kernels need AVX2 with FMA and F16C, or AVX-512 VNNI"
#endif

#include <limits>

namespace braid {

constexpr int kLanes = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline Floats iota() {
    alignas(64) static constexpr float kIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(kIndex);
}

// e^x to about 1 ulp; exactly 0 below -87, e^88.3 above 88.3. Range reduction by ln 2, then a degree-6 Taylor-like
// polynomial on [-ln2/2, ln2/2].
inline Floats exp(Floats x) {
    const Floats lowest = splat(-87.0f);
    Floats y = min(max(x, lowest), splat(88.3f));
    Ints n = round_to_int(y * splat(1.44269504088896341f));
    Floats k = to_float(n);
    Floats r = fma(k, splat(-0.693359375f), y);
    r = fma(k, splat(2.12194440e-4f), r);
    Floats p = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f));
    Floats power = as_float(shift_left_23(n + splat_int(127)));
    return where_le(x, lowest, zeros(), p * power);
}

inline float exp(float x) {
    alignas(64) float lanes[kLanes];
    store(lanes, exp(splat(x)));
    return lanes[0];
}

inline Floats silu(Floats x) { return x / (splat(1.0f) + exp(zeros() - x)); }

// 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), written as x * sigmoid(2 u).
inline Floats gelu_tanh(Floats x) {
    Floats u = splat(0.7978845608028654f) * fma(splat(0.044715f) * x * x, x, x);
    return x / (splat(1.0f) + exp(zeros() - (u + u)));
}

}  // namespace braid
