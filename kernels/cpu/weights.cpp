#include "weights.h"

#include <immintrin.h>

#include <cstring>

namespace braid {
namespace {

// One group of one row: codes and its exact scale and minimum.
struct Group {
    uint8_t codes[kGroup];
    float scale;
    float minimum;
    float second_scale;  // of columns 16.., where the format has one
};

float half_at(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    return _cvtsh_ss(half);
}

void nibbles(const uint8_t* packed, uint8_t* codes) {
    for (int i = 0; i < 16; i++) {
        codes[i] = packed[i] & 15;
        codes[i + 16] = packed[i] >> 4;
    }
}

// The fifth bits of Q5_0 and Q5_1: bit i of a little-endian word belongs to code i.
void fifth_bits(const uint8_t* bytes, uint8_t* codes) {
    uint32_t bits;
    std::memcpy(&bits, bytes, 4);
    for (int i = 0; i < kGroup; i++) codes[i] |= (bits >> i & 1) << 4;
}

// Scale and minimum number `i` of 8, six bits each, in the 12 bytes of Q4_K and Q5_K.
void six_bit_pair(const uint8_t* bytes, int i, int* scale, int* minimum) {
    if (i < 4) {
        *scale = bytes[i] & 63;
        *minimum = bytes[i + 4] & 63;
    } else {
        *scale = (bytes[i + 4] & 15) | (bytes[i - 4] >> 6) << 4;
        *minimum = (bytes[i + 4] >> 4) | (bytes[i] >> 6) << 4;
    }
}

void unpack_super_block(const uint8_t* block, int i, bool five_bits, Group* group) {
    int scale, minimum;
    six_bit_pair(block + 4, i, &scale, &minimum);
    group->scale = half_at(block) * static_cast<float>(scale);
    group->minimum = -(half_at(block + 2) * static_cast<float>(minimum));
    const uint8_t* fifth = block + 16;
    const uint8_t* packed = block + (five_bits ? 48 : 16) + i / 2 * 32;
    for (int c = 0; c < kGroup; c++) {
        group->codes[c] = i % 2 ? packed[c] >> 4 : packed[c] & 15;
        if (five_bits) group->codes[c] |= (fifth[c] >> i & 1) << 4;
    }
}

// Q6_K keeps 256 columns as 128 bytes of low nibbles, 64 bytes of high pairs of bits and 16 signed scales. Each half of
// 128 columns is four runs of 32, which share 64 bytes of nibbles and 32 of pairs.
void unpack_six_bits(const uint8_t* block, int i, Group* group) {
    const int half = i / 4, run = i % 4;
    const uint8_t* low = block + 64 * half + 32 * (run % 2);
    const uint8_t* high = block + 128 + 32 * half;
    for (int c = 0; c < kGroup; c++) {
        const int nibble = run < 2 ? low[c] & 15 : low[c] >> 4;
        group->codes[c] = nibble | (high[c] >> 2 * run & 3) << 4;
    }
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + 2 * i;
    group->scale = half_at(block + 208) * static_cast<float>(scales[0]);
    group->second_scale = half_at(block + 208) * static_cast<float>(scales[1]);
}

void unpack(Stored stored, const uint8_t* row, int index, Group* group) {
    switch (stored) {
        case Stored::kQ4_0: {
            const uint8_t* block = row + index * 18;
            group->scale = half_at(block);
            group->minimum = -8.0f * group->scale;
            nibbles(block + 2, group->codes);
            return;
        }
        case Stored::kQ4_1: {
            const uint8_t* block = row + index * 20;
            group->scale = half_at(block);
            group->minimum = half_at(block + 2);
            nibbles(block + 4, group->codes);
            return;
        }
        case Stored::kQ5_0: {
            const uint8_t* block = row + index * 22;
            group->scale = half_at(block);
            group->minimum = -16.0f * group->scale;
            nibbles(block + 6, group->codes);
            fifth_bits(block + 2, group->codes);
            return;
        }
        case Stored::kQ5_1: {
            const uint8_t* block = row + index * 24;
            group->scale = half_at(block);
            group->minimum = half_at(block + 2);
            nibbles(block + 8, group->codes);
            fifth_bits(block + 4, group->codes);
            return;
        }
        case Stored::kQ8_0: {
            const uint8_t* block = row + index * 34;
            group->scale = half_at(block);
            group->minimum = -128.0f * group->scale;
            for (int c = 0; c < kGroup; c++) group->codes[c] = block[2 + c] ^ 0x80;
            return;
        }
        case Stored::kQ4_K: return unpack_super_block(row + index / 8 * 144, index % 8, false, group);
        case Stored::kQ5_K: return unpack_super_block(row + index / 8 * 176, index % 8, true, group);
        case Stored::kQ6_K: return unpack_six_bits(row + index / 8 * 210, index % 8, group);
    }
}

size_t stored_row_bytes(Stored stored, int columns) {
    switch (stored) {
        case Stored::kQ4_0: return columns / 32 * 18;
        case Stored::kQ4_1: return columns / 32 * 20;
        case Stored::kQ5_0: return columns / 32 * 22;
        case Stored::kQ5_1: return columns / 32 * 24;
        case Stored::kQ8_0: return columns / 32 * 34;
        case Stored::kQ4_K: return columns / 256 * 144;
        case Stored::kQ5_K: return columns / 256 * 176;
        case Stored::kQ6_K: break;
    }
    return columns / 256 * 210;
}

template <class T>
void put_scale(uint8_t* header, int lane, float value) {
    if constexpr (T::kWide) {
        std::memcpy(header + 4 * lane, &value, 4);
    } else {
        uint16_t half = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);  // exact: it came from a half
        std::memcpy(header + 2 * lane, &half, 2);
    }
}

template <class T>
void put_group(uint8_t* panel, int groups, int g, int lane, const Group& group) {
    uint8_t* header = panel + g * T::kHeaderBytes;
    put_scale<T>(header, lane, group.scale);
    if constexpr (T::kMinimum) put_scale<T>(header + T::kScaleBytes, lane, group.minimum);
    if constexpr (T::kHalves) put_scale<T>(header + T::kScaleBytes, lane, group.second_scale);
    uint8_t* codes = panel + T::header_bytes(groups) + g * T::kCodeBytes + 4 * lane;
    for (int k = 0; k < T::kBits; k++) {
        for (int c = 0; c < 4; c++) {
            uint8_t code = group.codes[4 * k + c];
            if constexpr (T::kNibbles) code |= group.codes[16 + 4 * k + c] << 4;
            codes[64 * k + c] = code;
        }
    }
}

template <class T>
float scale_at(const uint8_t* header, int lane) {
    if constexpr (!T::kWide) return half_at(header + 2 * lane);
    float value;
    std::memcpy(&value, header + 4 * lane, 4);
    return value;
}

}  // namespace

bool is_packable(int32_t stored, int64_t columns) {
    switch (static_cast<Stored>(stored)) {
        case Stored::kQ4_0:
        case Stored::kQ4_1:
        case Stored::kQ5_0:
        case Stored::kQ5_1:
        case Stored::kQ8_0: return columns % 32 == 0;
        case Stored::kQ4_K:
        case Stored::kQ5_K:
        case Stored::kQ6_K: return columns % 256 == 0;
    }
    return false;
}

Format format_of(Stored stored) {
    switch (stored) {
        case Stored::kQ4_0: return Format::kNibbleOffset;
        case Stored::kQ4_1: return Format::kNibbleMinimum;
        case Stored::kQ8_0: return Format::kByteOffset;
        case Stored::kQ4_K: return Format::kNibbleWide;
        case Stored::kQ6_K: return Format::kByteHalves;
        case Stored::kQ5_0:
        case Stored::kQ5_1:
        case Stored::kQ5_K: break;
    }
    return Format::kByteWide;
}

size_t Matrix::panel_bytes() const {
    return with_traits(format, [&](auto traits) { return decltype(traits)::panel_bytes(num_groups()); });
}

void pack_panel(const Matrix& matrix, Stored stored, const uint8_t* rows, int panel) {
    const size_t row_bytes = stored_row_bytes(stored, matrix.columns);
    const int groups = matrix.num_groups();
    with_traits(matrix.format, [&](auto traits) {
        std::memset(matrix.panel(panel), 0, matrix.panel_bytes());
        for (int lane = 0; lane < kPanelRows && panel * kPanelRows + lane < matrix.rows; lane++) {
            const uint8_t* row = rows + (static_cast<size_t>(panel) * kPanelRows + lane) * row_bytes;
            for (int g = 0; g < groups; g++) {
                Group group;
                unpack(stored, row, g, &group);
                put_group<decltype(traits)>(matrix.panel(panel), groups, g, lane, group);
            }
        }
    });
}

void dequantize_row(const Matrix& matrix, int row, float* out) {
    const int lane = row % kPanelRows;
    const uint8_t* panel = matrix.panel(row / kPanelRows);
    with_traits(matrix.format, [&](auto traits) {
        using T = decltype(traits);
        const uint8_t* codes = panel + T::header_bytes(matrix.num_groups()) + 4 * lane;
        for (int g = 0; g < matrix.num_groups(); g++, codes += T::kCodeBytes) {
            const uint8_t* header = panel + g * T::kHeaderBytes;
            const float scale = scale_at<T>(header, lane);
            const float minimum = T::kMinimum ? scale_at<T>(header + T::kScaleBytes, lane) : 0.0f;
            for (int c = 0; c < kGroup; c++) {
                const int byte = T::kNibbles ? c % 16 : c;
                int code = codes[byte / 4 * 64 + byte % 4];
                if constexpr (T::kNibbles) code = c < 16 ? code & 15 : code >> 4;
                const float of_column = T::kHalves && c >= 16 ? scale_at<T>(header + T::kScaleBytes, lane) : scale;
                out[g * kGroup + c] = of_column * static_cast<float>(code - T::kOffset) + minimum;
            }
        }
    });
}

}  // namespace braid
