// Maps as padded planes, for any set of offsets: channel planes extended on all sides under the border rule, the columns
// of a strided neighbourhood sorted by phase. Every offset is then one constant distance, and lanes are pixels.
#pragma once
#include "geometry.h"

namespace {

// A block of C channels of some rows of one image as planes: row r, channel c begins at data + (c*rows + r)*row_size.
struct Planes {
    float* data;
    int rows, row_size;
    float* at(int c, int r) const { return data + ((size_t)c * rows + r) * row_size; }
    size_t channel_step() const { return (size_t)rows * row_size; }
};

// L pixels of channels c to c+L-1 as L planes; a pixel outside the map has step 0 and points at zeros.
template <int L>
INLINE void transpose_pixels(const float* const* pixel, const int* step, int c, float* target, size_t channel_step) {
    Vec<L> v[L];
    repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(pixel[i] + c * step[i]); });
    transpose<L>(v);
    repeat<L>([&](auto i) UNROLLED { store<L>(target + (c + i) * channel_step, v[i]); });
}

// Rows of `map` (channels c0 to c0+channels-1 of image b) into planes: dst row r takes map row source_row(r), dst column
// i takes column columns[i]; -1 gives zeros. Rows are whole vectors.
template <class Row>
void fill_planes(const ConvattnMap& map, int b, int c0, int channels, const Planes& dst, const int* columns, Row source_row) {
    constexpr int L = native_lanes, half = L >= 8 ? L / 2 : L;  // vectors of two have no type
    alignas(64) static const float zeros[L] = {};
    const float* base = map.data + b * map.image + c0 * map.channel;
    const size_t channel_step = dst.channel_step();
    for (int r = 0; r < dst.rows; r++) {
        const int y = source_row(r);
        if (y < 0) {
            for (int c = 0; c < channels; c++) memset(dst.at(c, r), 0, dst.row_size * 4);
            continue;
        }
        const float* row = base + y * map.row;
        for (int i0 = 0; i0 < dst.row_size; i0 += L) {
            const int* x = columns + i0;
            float* target = dst.at(0, r) + i0;
            bool outside = true, run = map.column == 1 && x[0] >= 0;
            for (int l = 0; l < L; l++) outside = outside && x[l] < 0, run = run && x[l] == x[0] + l;
            int c = 0;
            if (outside) {
                for (; c < channels; c++) store<L>(target + c * channel_step, Vec<L>{});
            } else if (run) {
                for (; c < channels; c++) store<L>(target + c * channel_step, load<L>(row + c * map.channel + x[0]));
            } else if (map.channel == 1) {
                const float* pixel[L];
                int step[L];
                for (int l = 0; l < L; l++) pixel[l] = x[l] < 0 ? zeros : row + x[l] * map.column, step[l] = x[l] >= 0;
                for (; c + L <= channels; c += L) transpose_pixels<L>(pixel, step, c, target, channel_step);
                for (; L >= 8 && c + half <= channels; c += half) {
                    transpose_pixels<half>(pixel, step, c, target, channel_step);
                    transpose_pixels<half>(pixel + half, step + half, c, target + half, channel_step);
                }
            }
            for (; c < channels; c++)
                for (int l = 0; l < L; l++) target[c * channel_step + l] = x[l] < 0 ? 0.f : row[c * map.channel + x[l] * map.column];
        }
    }
}

template <int L>
INLINE void transpose_planes(const float* plane, size_t channel_step, int c, float* pixel, ptrdiff_t column, int valid) {
    Vec<L> v[L];
    repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(plane + (c + i) * channel_step); });
    transpose<L>(v);
    repeat<L>([&](auto i) UNROLLED {
        if (i < valid) store<L>(pixel + i * column + c, v[i]);
    });
}

// Planes back into rows y0 and on of a map, one pixel a column.
void store_planes(const Planes& src, const ConvattnMap& map, int b, int c0, int channels, int y0, int rows, int width) {
    constexpr int L = native_lanes, half = L >= 8 ? L / 2 : L;  // vectors of two have no type
    for (int r = 0; r < rows; r++) {
        float* row = map.data + b * map.image + c0 * map.channel + (y0 + r) * map.row;
        for (int i0 = 0; i0 < width; i0 += L) {
            const int valid = smaller(L, width - i0);
            int c = 0;
            if (map.channel == 1) {
                const float* planes = src.at(0, r) + i0;
                float* pixels = row + i0 * map.column;
                for (; c + L <= channels; c += L) transpose_planes<L>(planes, src.channel_step(), c, pixels, map.column, valid);
                for (; L >= 8 && c + half <= channels; c += half) {
                    transpose_planes<half>(planes, src.channel_step(), c, pixels, map.column, valid);
                    transpose_planes<half>(planes + half, src.channel_step(), c, pixels + half * map.column, map.column, valid - half);
                }
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

// The padded planes of output rows y0 to y0+out_rows-1, in working memory of `floats`, which begins with the table of
// columns.
size_t padded_floats(const Geometry& g, int channels, int out_rows) {
    return ((size_t)channels * g.padded_rows(out_rows) + 1) * g.row_size() + native_lanes;
}
Planes padded_planes(const Geometry& g, const ConvattnMap& map, int b, int c0, int channels, int y0, int out_rows, float* memory) {
    const Planes planes = {memory + g.row_size(), g.padded_rows(out_rows), g.row_size()};
    int* columns = (int*)memory;
    for (int phase = 0; phase < g.sx; phase++)
        for (int i = 0; i < g.plane_width(); i++) {
            const int x = i * g.sx + phase - g.left;
            columns[phase * g.plane_width() + i] = x <= g.sx * (g.Wo - 1) + g.right ? border_source(x, g.W, g.border) : -1;
        }
    fill_planes(map, b, c0, channels, planes, columns, [&](int r) { return border_source(g.sy * y0 + r - g.top, g.H, g.border); });
    return planes;
}

// A map at the output resolution as planes without padding; beyond the last column there are zeros.
int out_row_size(const Geometry& g) { return round_up(g.Wo, native_lanes) + native_lanes; }
size_t out_floats(const Geometry& g, int channels, int rows) {
    return ((size_t)channels * rows + 1) * out_row_size(g) + native_lanes;
}
Planes out_planes(const Geometry& g, const ConvattnMap& map, int b, int c0, int channels, int y0, int rows, float* memory) {
    const Planes planes = {memory + out_row_size(g), rows, out_row_size(g)};
    int* columns = (int*)memory;
    for (int i = 0; i < planes.row_size; i++) columns[i] = i < g.Wo ? i : -1;
    fill_planes(map, b, c0, channels, planes, columns, [&](int r) { return y0 + r; });
    return planes;
}

}  // namespace
