// The product of quantised weights and quantised activations, one panel and one tile of tokens at a time.
#pragma once
#include "activations.h"

namespace braid {

// out[t * out_stride + r] = row r of the panel times token t of the tile, for 16 rows. For one row and token the
// operations and their order are the same in every tile size.
using PanelKernel = void (*)(const uint8_t* panel, int groups, Tile tokens, float* out, int out_stride);

PanelKernel panel_kernel(Format format, int tile_size, bool exact);

}  // namespace braid
