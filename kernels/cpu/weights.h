// Quantised matrices as the kernels read them: panels of 16 rows, cut into groups of 32 columns.
//
// A weight is `scale * code + minimum` with one scale and minimum per row and group. A panel is
//     header: per group, 16 scales, then (where the format has them) 16 minimums, or 16 scales of the second half
//     codes:  per group, 8 bits: 8 blocks of 64 bytes, block k holds columns 4k..4k+3 of each of the 16 rows;
//             4 bits: 4 such blocks, low nibbles for columns 4k.., high nibbles for columns 16 + 4k..
// so that one 64-byte load meets one broadcast of four activations. Missing rows are zero weights.
#pragma once
#include <cstddef>
#include <cstdint>

namespace braid {

constexpr int kPanelRows = 16;
constexpr int kGroup = 32;

enum class Format : int32_t {
    kNibbleOffset,   // 4 bits, minimum = -8 scale, half scales       (Q4_0)
    kNibbleMinimum,  // 4 bits, half scales and minimums              (Q4_1)
    kByteOffset,     // 8 bits, minimum = -128 scale, half scales     (Q8_0)
    kNibbleWide,     // 4 bits, float scales and minimums             (Q4_K)
    kByteWide,       // 8 bits, float scales and minimums             (Q5_0, Q5_1, Q5_K)
    kByteHalves,     // 8 bits, float scales of 16 columns, minimum = -32 scale  (Q6_K)
};

template <Format F>
struct Traits {
    static constexpr bool kNibbles = F == Format::kNibbleOffset || F == Format::kNibbleMinimum || F == Format::kNibbleWide;
    static constexpr bool kHalves = F == Format::kByteHalves;
    static constexpr bool kWide = F == Format::kNibbleWide || F == Format::kByteWide || kHalves;
    static constexpr bool kMinimum = F == Format::kNibbleWide || F == Format::kByteWide || F == Format::kNibbleMinimum;
    static constexpr int kBits = kNibbles ? 4 : 8;
    static constexpr int kOffset = kMinimum ? 0 : (kHalves ? 32 : (kNibbles ? 8 : 128));
    static constexpr size_t kScaleBytes = kPanelRows * (kWide ? 4 : 2);
    static constexpr size_t kHeaderBytes = kScaleBytes * (kMinimum || kHalves ? 2 : 1);  // per group
    static constexpr size_t kCodeBytes = kPanelRows * kGroup * kBits / 8;     // per group
    static constexpr size_t header_bytes(size_t groups) { return (groups * kHeaderBytes + 63) / 64 * 64; }
    static constexpr size_t panel_bytes(size_t groups) { return header_bytes(groups) + groups * kCodeBytes; }
};

// Calls `visit` with the Traits of `format`.
template <class Visitor>
auto with_traits(Format format, Visitor&& visit) {
    switch (format) {
        case Format::kNibbleOffset: return visit(Traits<Format::kNibbleOffset>{});
        case Format::kNibbleMinimum: return visit(Traits<Format::kNibbleMinimum>{});
        case Format::kByteOffset: return visit(Traits<Format::kByteOffset>{});
        case Format::kNibbleWide: return visit(Traits<Format::kNibbleWide>{});
        case Format::kByteWide: return visit(Traits<Format::kByteWide>{});
        case Format::kByteHalves: break;
    }
    return visit(Traits<Format::kByteHalves>{});
}

// GGML's block formats, by the number that GGUF files use.
enum class Stored : int32_t { kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14 };

bool is_packable(int32_t stored, int64_t columns);
Format format_of(Stored stored);

struct Matrix {
    Format format{};
    int32_t rows = 0;
    int32_t columns = 0;
    uint8_t* panels = nullptr;
    size_t stride = 0;  // bytes from one panel to the next; more than a panel where two matrices are interleaved

    int num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
    int num_groups() const { return columns / kGroup; }
    size_t panel_bytes() const;
    uint8_t* panel(int index) const { return panels + index * stride; }
};

// Repacks rows 16 * panel .. of a stored matrix (row after row of GGML blocks) into that panel of `matrix`.
void pack_panel(const Matrix& matrix, Stored stored, const uint8_t* rows, int panel);

// Row `row` as floats: scale * code + minimum.
void dequantize_row(const Matrix& matrix, int row, float* out);

}  // namespace braid
