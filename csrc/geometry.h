// A set of offsets on a map.
#pragma once
#include "border.h"
#include "convattn.h"
#include "vectors.h"

namespace {

constexpr int weights_ahead = 64;  // how many floats ahead the weights of every tap are fetched

struct Geometry {
    int B, C, N, d, H, W, Ho, Wo, taps, sy, sx, border, threads;
    int top, left;        // how far the offsets reach above and to the left
    int below, right;     // the last row and column distance from a centre
    const int32_t* offsets;
    explicit Geometry(const ConvattnOffsets& s)
        : B(s.batch), C(s.channels), N(s.heads), d(s.channels / s.heads), H(s.height), W(s.width), Ho(s.out_height), Wo(s.out_width),
          taps(s.taps), sy(s.stride_y), sx(s.stride_x), border(s.border), threads(s.threads), top(0), left(0), below(0), right(0),
          offsets(s.offsets) {
        for (int m = 0; m < taps; m++) {
            top = larger(top, -dy(m)), below = larger(below, dy(m));
            left = larger(left, -dx(m)), right = larger(right, dx(m));
        }
    }
    int dy(int m) const { return offsets[2 * m]; }
    int dx(int m) const { return offsets[2 * m + 1]; }
    // Padded column u = x + left lies at phase u % sx, index u / sx.
    int plane_width() const {
        const int n = round_up(Wo + (left + right) / sx + native_lanes, native_lanes);
        return n % 32 ? n : n + 16;  // a multiple of 32 would put all rows into few cache sets
    }
    int row_size() const { return sx * plane_width(); }
    int padded_rows(int out_rows) const { return sy * (out_rows - 1) + top + below + 1; }
    // Distance from a pixel's own place to that of its neighbour by offset m, in planes that begin `top` rows above.
    ptrdiff_t distance(int m) const {
        const int u = dx(m) + left;
        return (ptrdiff_t)(dy(m) + top) * row_size() + (u % sx) * plane_width() + u / sx;
    }
};
INLINE size_t distance_floats(const Geometry& g) { return 2 * (size_t)g.taps; }

}  // namespace
