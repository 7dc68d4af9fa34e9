// Sixteen float lanes and sixteen int lanes on AVX-512. The AVX2 twin has the same names and gives the same bits.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace braid {

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};

inline Floats splat(float x) { return {_mm512_set1_ps(x)}; }
inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }

// a <= b ? x : y, lane by lane.
inline Floats where_le(Floats a, Floats b, Floats x, Floats y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ), y.v, x.v)};
}

inline Floats load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Floats load_int16(const int16_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))))};
}

inline Ints splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints round_to_int(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Floats to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints shift_left_23(Ints a) { return {_mm512_slli_epi32(a.v, 23)}; }
inline Floats as_float(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
inline void store_int16(int16_t* p, Ints a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline int32_t sum_lanes(Ints a) { return _mm512_reduce_add_epi32(a.v); }

// The order of additions is part of the result: lanes 8 apart first, then 4, 2 and 1.
inline float sum_lanes(Floats a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float max_lanes(Floats a) { return _mm512_reduce_max_ps(a.v); }

// 32 quantised activations as the dot kernel wants them: 32 high bytes, then 32 low bytes (exact), or 32 bytes (fast).
template <bool Exact>
inline void store_codes(uint8_t* codes, Ints q0, Ints q1) {
    auto put = [](uint8_t* p, __m512i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); };
    if constexpr (!Exact) {
        put(codes, q0.v);
        put(codes + 16, q1.v);
        return;
    }
    const __m512i half = _mm512_set1_epi32(128);
    put(codes, _mm512_srai_epi32(_mm512_add_epi32(q0.v, half), 8));
    put(codes + 16, _mm512_srai_epi32(_mm512_add_epi32(q1.v, half), 8));
    put(codes + 32, q0.v);  // the low byte of q is q - 256 * high, as a signed byte
    put(codes + 48, q1.v);
}

// Integer dots of one group (16 rows x 32 columns) with T tokens, as floats. `offsets` is subtracted from each sum.
// First .. End - 1 are the fours of columns that count.
template <int Bits, int T, bool Exact, bool Offset, int First = 0, int End = 8>
[[gnu::always_inline]] inline void dot_group(const uint8_t* weights, const uint8_t* codes, const int32_t* offsets,
                                             Floats* dots) {
    __m512i w[8];
    if constexpr (Bits == 4) {
        const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            __m512i packed = _mm512_loadu_si512(weights + 64 * k);
            w[k] = _mm512_and_si512(packed, nibble);
            w[k + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
        }
    } else {
#pragma GCC unroll 8
        for (int k = First; k < End; k++) w[k] = _mm512_loadu_si512(weights + 64 * k);
    }
    auto four = [&](int t, int byte) {
        int32_t bytes;
        __builtin_memcpy(&bytes, codes + 64 * t + byte, 4);
        return _mm512_set1_epi32(bytes);
    };
    __m512i sum[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int k = First; k < End; k++) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], w[k], four(t, 4 * k));
    }
    if constexpr (Exact) {
        if constexpr (T <= 2) {  // short of independent chains: add the low bytes up on their own
            __m512i low[T];
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) low[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int k = First; k < End; k++) {
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) low[t] = _mm512_dpbusd_epi32(low[t], w[k], four(t, 32 + 4 * k));
            }
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) sum[t] = _mm512_add_epi32(_mm512_slli_epi32(sum[t], 8), low[t]);
        } else {
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) sum[t] = _mm512_slli_epi32(sum[t], 8);
#pragma GCC unroll 8
            for (int k = First; k < End; k++) {
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) sum[t] = _mm512_dpbusd_epi32(sum[t], w[k], four(t, 32 + 4 * k));
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        if constexpr (Offset) sum[t] = _mm512_sub_epi32(sum[t], _mm512_set1_epi32(offsets[t]));
        dots[t] = {_mm512_cvtepi32_ps(sum[t])};
    }
}

// The arithmetic limit: independent dot instructions and nothing else. A round is kPeakProducts products of 8-bit
// numbers; the result only keeps the compiler from leaving it out.
constexpr int64_t kPeakProducts = 12 * 64;
inline int32_t dots_at_peak(int64_t rounds) {
    __m512i sum[12], w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5), total = _mm512_setzero_si512();
    for (__m512i& one : sum) one = total;
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < 12; k++) sum[k] = _mm512_dpbusd_epi32(sum[k], w, x);
        asm volatile("" : "+v"(w), "+v"(x));
    }
    for (__m512i one : sum) total = _mm512_add_epi32(total, one);
    return _mm512_reduce_add_epi32(total);
}

}  // namespace braid
