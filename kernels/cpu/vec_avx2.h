// Sixteen float lanes and sixteen int lanes as pairs of AVX2 registers, with the same bits as on AVX-512.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace braid {

struct Floats {
    __m256 lo, hi;
};
struct Ints {
    __m256i lo, hi;
};

inline Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Floats abs(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}

// a <= b ? x : y, lane by lane.
inline Floats where_le(Floats a, Floats b, Floats x, Floats y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ))};
}

inline Floats load_half(const uint16_t* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline Floats load_int16(const int16_t* p) {
    const __m128i* words = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(words))),
            _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(words + 1)))};
}

inline Ints splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints round_to_int(Floats a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline Floats to_float(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline Ints shift_left_23(Ints a) { return {_mm256_slli_epi32(a.lo, 23), _mm256_slli_epi32(a.hi, 23)}; }
inline Floats as_float(Ints a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline void store_int16(int16_t* p, Ints a) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}
inline int32_t sum_lanes(Ints a) {
    __m256i b = _mm256_add_epi32(a.lo, a.hi);
    __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    c = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}

// The order of additions is part of the result: lanes 8 apart first, then 4, 2 and 1.
inline float sum_lanes(Floats a) {
    __m256 b = _mm256_add_ps(a.lo, a.hi);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float max_lanes(Floats a) {
    __m256 b = _mm256_max_ps(a.lo, a.hi);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// 32 quantised activations as the dot kernel wants them: 16-bit, each four columns in the order 0, 2, 1, 3, because
// masking the even and the odd bytes of four weights gives columns (0, 2) and (1, 3).
template <bool Exact>
inline void store_codes(uint8_t* codes, Ints q0, Ints q1) {
    auto eight = [](__m256i q) {  // 8 int32 -> 8 int16, reordered
        const __m256i order = _mm256_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                               0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
        q = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(q, order), 0x08);
        return _mm256_castsi256_si128(q);
    };
    __m128i* out = reinterpret_cast<__m128i*>(codes);
    _mm_storeu_si128(out, eight(q0.lo));
    _mm_storeu_si128(out + 1, eight(q0.hi));
    _mm_storeu_si128(out + 2, eight(q1.lo));
    _mm_storeu_si128(out + 3, eight(q1.hi));
}

// Integer dots of one group (16 rows x 32 columns) with T tokens, as floats. `offsets` is subtracted from each sum.
// The same integers in both modes: only how finely the activations were quantised differs. First .. End - 1 are the fours
// of columns that count.
template <int Bits, int T, bool Exact, bool Offset, int First = 0, int End = 8>
[[gnu::always_inline]] inline void dot_group(const uint8_t* weights, const uint8_t* codes, const int32_t* offsets,
                                             Floats* dots) {
    const __m256i mask = _mm256_set1_epi16(Bits == 4 ? 15 : 255);
    auto pair = [&](int t, int index) {
        int32_t two;
        __builtin_memcpy(&two, codes + 64 * t + 4 * index, 4);
        return _mm256_set1_epi32(two);
    };
    __m256i sums[2][T];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m256i* sum = sums[half];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sum[t] = _mm256_setzero_si256();
        auto add = [&](__m256i w, int index) {
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(w, pair(t, index)));
        };
        for (int k = First; k < (Bits == 4 ? 4 : End); k++) {
            __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 64 * k + 32 * half));
            add(_mm256_and_si256(packed, mask), 2 * k);
            add(_mm256_and_si256(_mm256_srli_epi16(packed, 8), mask), 2 * k + 1);
            if constexpr (Bits == 4) {
                add(_mm256_and_si256(_mm256_srli_epi16(packed, 4), mask), 2 * k + 8);
                add(_mm256_srli_epi16(packed, 12), 2 * k + 9);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        __m256i offset = Offset ? _mm256_set1_epi32(offsets[t]) : _mm256_setzero_si256();
        dots[t] = {_mm256_cvtepi32_ps(_mm256_sub_epi32(sums[0][t], offset)),
                   _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[1][t], offset))};
    }
}

// The arithmetic limit: independent dot instructions and nothing else. A round is kPeakProducts products of 16-bit
// numbers; the result only keeps the compiler from leaving it out.
constexpr int64_t kPeakProducts = 8 * 16;
inline int32_t dots_at_peak(int64_t rounds) {
    __m256i sum[8], w = _mm256_set1_epi16(3), x = _mm256_set1_epi16(5), total = _mm256_setzero_si256();
    for (__m256i& one : sum) one = total;
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(w, x));
            asm volatile("" : "+x"(w), "+x"(x));  // else one product would serve all
        }
    }
    for (__m256i one : sum) total = _mm256_add_epi32(total, one);
    return sum_lanes(Ints{total, _mm256_setzero_si256()});
}

}  // namespace braid
