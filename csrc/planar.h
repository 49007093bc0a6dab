// Maps as padded planes, for any set of offsets: channel planes extended on all sides under the border rule, the columns
// of a strided neighbourhood sorted by phase. Every offset is then one constant distance, and lanes are pixels.
#pragma once
#include "convattn.h"
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

// A block of C channels of some rows of one image as planes: row r, channel c begins at data + (c*rows + r)*row_size.
struct Planes {
    float* data;
    int rows, row_size;
    float* at(int c, int r) const { return data + ((size_t)c * rows + r) * row_size; }
    size_t channel_step() const { return (size_t)rows * row_size; }
};

// Rows of `map` (channels c0 to c0+channels-1 of image b) into planes: dst row r takes map row source_row(r), dst column
// i takes column source_column(i); -1 gives zeros.
template <class Row, class Column>
void fill_planes(const ConvattnMap& map, int b, int c0, int channels, const Planes& dst, int width, Row source_row, Column source_column) {
    constexpr int L = native_lanes;
    const float* base = map.data + b * map.image + c0 * map.channel;
    for (int r = 0; r < dst.rows; r++) {
        const int y = source_row(r);
        if (y < 0) {
            for (int c = 0; c < channels; c++) memset(dst.at(c, r), 0, dst.row_size * 4);
            continue;
        }
        const float* row = base + y * map.row;
        for (int i0 = 0; i0 < width; i0 += L) {
            ptrdiff_t from[L];
            bool inside = true;
            for (int l = 0; l < L; l++) {
                const int x = i0 + l < width ? source_column(i0 + l) : -1;
                from[l] = x < 0 ? -1 : x * map.column;
                inside = inside && x >= 0;
            }
            int c = 0;
            if (map.channel == 1 && inside)
                for (; c + L <= channels; c += L) {
                    Vec<L> v[L];
                    repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(row + from[i] + c); });
                    transpose<L>(v);
                    repeat<L>([&](auto i) UNROLLED { store<L>(dst.at(c + i, r) + i0, v[i]); });
                }
            const bool run = inside && from[L - 1] - from[0] == L - 1 && from[1] - from[0] == 1;
            for (; c < channels; c++) {
                const float* plane = row + c * map.channel;
                float* target = dst.at(c, r) + i0;
                if (run) store<L>(target, load<L>(plane + from[0]));
                else
                    for (int l = 0; l < L; l++) target[l] = from[l] < 0 ? 0.f : plane[from[l]];
            }
        }
        for (int c = 0; c < channels; c++) {
            const int written = round_up(width, L);
            memset(dst.at(c, r) + written, 0, (dst.row_size - written) * 4);
        }
    }
}

// Planes back into rows y0 and on of a map, one pixel a column.
void store_planes(const Planes& src, const ConvattnMap& map, int b, int c0, int channels, int y0, int rows, int width) {
    constexpr int L = native_lanes;
    for (int r = 0; r < rows; r++) {
        float* row = map.data + b * map.image + c0 * map.channel + (y0 + r) * map.row;
        for (int i0 = 0; i0 < width; i0 += L) {
            const int valid = smaller(L, width - i0);
            int c = 0;
            if (map.channel == 1)
                for (; c + L <= channels; c += L) {
                    Vec<L> v[L];
                    repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(src.at(c + i, r) + i0); });
                    transpose<L>(v);
                    repeat<L>([&](auto i) UNROLLED {
                        if (i < valid) store<L>(row + (i0 + i) * map.column + c, v[i]);
                    });
                }
            for (; c < channels; c++) {
                const float* plane = src.at(c, r) + i0;
                float* target = row + c * map.channel + i0 * map.column;
                if (valid == L && map.column == 1) store<L>(target, load<L>(plane));
                else
                    for (int l = 0; l < valid; l++) target[l * map.column] = plane[l];
            }
        }
    }
}

// The padded planes of output rows y0 to y0+out_rows-1, in working memory of `floats`.
size_t padded_floats(const Geometry& g, int channels, int out_rows) {
    return (size_t)channels * g.padded_rows(out_rows) * g.row_size() + native_lanes;
}
Planes padded_planes(const Geometry& g, const ConvattnMap& map, int b, int c0, int channels, int y0, int out_rows, float* memory) {
    const Planes planes = {memory, g.padded_rows(out_rows), g.row_size()};
    const int plane_width = g.plane_width();
    fill_planes(
        map, b, c0, channels, planes, planes.row_size,
        [&](int r) { return border_source(g.sy * y0 + r - g.top, g.H, g.border); },
        [&](int i) {
            const int x = (i % plane_width) * g.sx + i / plane_width - g.left;
            return x <= g.sx * (g.Wo - 1) + g.right ? border_source(x, g.W, g.border) : -1;
        });
    return planes;
}

// A map at the output resolution as planes without padding; beyond the last column there are zeros.
int out_row_size(const Geometry& g) { return round_up(g.Wo, native_lanes) + native_lanes; }
size_t out_floats(const Geometry& g, int channels, int rows) { return (size_t)channels * rows * out_row_size(g) + native_lanes; }
Planes out_planes(const Geometry& g, const ConvattnMap& map, int b, int c0, int channels, int y0, int rows, float* memory) {
    const Planes planes = {memory, rows, out_row_size(g)};
    fill_planes(map, b, c0, channels, planes, g.Wo, [&](int r) { return y0 + r; }, [&](int i) { return i; });
    return planes;
}

}  // namespace
