#include "linear.h"

#include <array>
#include <utility>

namespace braid {
namespace {

// How far ahead of their use weights and activations are fetched. Measured: a panel's worth keeps both memory and L1 busy.
constexpr size_t kWeightsAhead = 6144;
constexpr size_t kCodesAhead = 2048;

template <class T>
[[gnu::always_inline]] inline Floats load_scales(const uint8_t* header) {
    if constexpr (T::kWide) return load(reinterpret_cast<const float*>(header));
    return load_half(reinterpret_cast<const uint16_t*>(header));
}

template <class Layout>
[[gnu::always_inline]] inline void prefetch_group(const uint8_t* codes) {
    constexpr size_t bytes = Layout::kCodeBytes + Layout::kHeaderBytes;
#pragma GCC unroll 16
    for (size_t line = 0; line < bytes; line += 64) _mm_prefetch(codes + kWeightsAhead + line, _MM_HINT_T0);
}

// The next tile of the block follows this one.
template <int T>
[[gnu::always_inline]] inline void prefetch_codes(const uint8_t* codes) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) _mm_prefetch(codes + kCodesAhead + t * kCodesBytes, _MM_HINT_T0);
}

// Adds one group: y += d * (s * dot), for each half where halves have their own d; then, where the format has minimums,
// y += m * (s * sum(q)).
template <class Layout, int T, bool Exact>
[[gnu::always_inline]] inline void add_group(const uint8_t* header, const uint8_t* weights, Codes tokens, Floats* y) {
    const float* scales = tokens.scales;
    const int32_t* sums = reinterpret_cast<const int32_t*>(scales);
    const auto add_dots = [&](const Floats* dots, Floats d) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) y[t] = fma(dots[t] * splat(scales[kScale * T + t]), d, y[t]);
    };
    const Floats d = load_scales<Layout>(header);
    Floats dots[T];
    if constexpr (Layout::kHalves) {
        dot_group<8, T, Exact, true, 0, 4>(weights, tokens.codes, sums + kFirstSum32 * T, dots);
        add_dots(dots, d);
        dot_group<8, T, Exact, true, 4, 8>(weights, tokens.codes, sums + kSecondSum32 * T, dots);
        add_dots(dots, load_scales<Layout>(header + Layout::kScaleBytes));
    } else {
        constexpr Scales offset = Layout::kOffset == 8 ? kSum8 : kSum128;
        dot_group<Layout::kBits, T, Exact, Layout::kOffset != 0>(weights, tokens.codes, sums + offset * T, dots);
        add_dots(dots, d);
    }
    if constexpr (Layout::kMinimum) {
        const Floats m = load_scales<Layout>(header + Layout::kScaleBytes);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) y[t] = fma(m, splat(scales[kScaledSum * T + t]), y[t]);
    }
}

template <int T>
[[gnu::always_inline]] inline bool any_has_fine(const float* scales) {
    const int32_t* flags = reinterpret_cast<const int32_t*>(scales) + kHasFine * T;
    int32_t any = 0;
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) any |= flags[t];
    return any;
}

// Groups in the order of columns, each with its coarse and then its fine codes. A token without fine codes beside one
// that has some adds zeros there, so its bits are the same as alone.
template <Format F, int T, bool Exact>
void multiply_panel(const uint8_t* panel, int groups, Tile tokens, float* out, int out_stride) {
    using Layout = Traits<F>;
    const uint8_t* header = panel;
    const uint8_t* weights = panel + Layout::header_bytes(groups);
    const uint8_t* ahead = panel;
    Codes coarse = tokens.coarse;
    Floats y[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) y[t] = zeros();
    for (int g = 0; g < groups; g++) {
        prefetch_group<Layout>(ahead);
        if constexpr (T >= 3) prefetch_codes<T>(coarse.codes);
        add_group<Layout, T, Exact>(header, weights, coarse, y);
        if constexpr (Exact) {
            if (any_has_fine<T>(coarse.scales))
                add_group<Layout, T, false>(header, weights, tokens.fine.after(T, g), y);
        }
        header += Layout::kHeaderBytes;
        weights += Layout::kCodeBytes;
        ahead += Layout::kHeaderBytes + Layout::kCodeBytes;
        coarse = coarse.after(T, 1);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) store(out + t * out_stride, y[t]);
}

template <Format F, bool Exact, int... Sizes>
constexpr std::array<PanelKernel, kTile> by_size(std::integer_sequence<int, Sizes...>) {
    return {multiply_panel<F, Sizes + 1, Exact>...};
}

template <Format F, bool Exact>
PanelKernel kernel_of(int tile_size) {
    static constexpr auto kernels = by_size<F, Exact>(std::make_integer_sequence<int, kTile>{});
    return kernels[tile_size - 1];
}

template <Format F>
PanelKernel kernel_of(int tile_size, bool exact) {
    return exact ? kernel_of<F, true>(tile_size) : kernel_of<F, false>(tile_size);
}

}  // namespace

PanelKernel panel_kernel(Format format, int tile_size, bool exact) {
    switch (format) {
        case Format::kNibbleOffset: return kernel_of<Format::kNibbleOffset>(tile_size, exact);
        case Format::kNibbleMinimum: return kernel_of<Format::kNibbleMinimum>(tile_size, exact);
        case Format::kByteOffset: return kernel_of<Format::kByteOffset>(tile_size, exact);
        case Format::kNibbleWide: return kernel_of<Format::kNibbleWide>(tile_size, exact);
        case Format::kByteWide: return kernel_of<Format::kByteWide>(tile_size, exact);
        case Format::kByteHalves: break;
    }
    return kernel_of<Format::kByteHalves>(tile_size, exact);
}

}  // namespace braid
