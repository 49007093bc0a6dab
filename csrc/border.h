// What a position beyond the border of a map reads.
#pragma once
#include "vectors.h"

namespace {

enum Border { border_reflect = 0, border_zeros = 1, border_replicate = 2 };

// The pixel that a position on an axis of n pixels reads; -1 reads zero.
INLINE int border_source(int i, int n, int border) {
    if (i >= 0 && i < n) return i;
    if (border == border_zeros) return -1;
    if (border == border_replicate) return i < 0 ? 0 : n - 1;
    if (n == 1) return 0;
    const int period = 2 * (n - 1);
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

}  // namespace
