// Local attention over a reflected K x K window of channels-last maps: the problem and its two layouts on vector lanes.
//
//   * dot products over channels (logits; dout . v): lanes are PIXELS. Keys go through a small ring of rows stored
//     planar ([channel][column]), with the border reflected and the position p subtracted on the way in.
//   * everything else (weighted sums, their transposes, the group convolution): lanes are CHANNELS, which is how the
//     maps already lie, so nothing is transposed and a border is only a change of address.
//
// E, of the forward pass, is what a lane holds (products.h). Of pairs of channels there are half as many as channels.
#pragma once
#include "convattn.h"
#include "products.h"
#include "softmax.h"
#include "vectors.h"

#ifndef CONVATTN_WINDOW
#define CONVATTN_WINDOW 7  // the papers'; kernels_window3.cpp and kernels_window5.cpp have others
#endif

namespace {

constexpr int K = CONVATTN_WINDOW, reach = K / 2, window_taps = K * K;
constexpr int block_rows = 4;  // query rows that share the key rows they load

// A channels-last map: head 0's channel 0 of a pixel, and the floats from one image, row and pixel to the next.
struct View {
    float* data;
    ptrdiff_t image, row, pixel;
    View() = default;
    View(float* data, ptrdiff_t image, ptrdiff_t row, ptrdiff_t pixel) : data(data), image(image), row(row), pixel(pixel) {}
    explicit View(const ConvattnMap& m) : View(m.data, m.image, m.row, m.column) {}
    View from_channel(int c) const { return {data + c, image, row, pixel}; }
    float* at(int b, int y = 0, int x = 0) const { return data + b * image + y * row + x * pixel; }
};


// Rows of one image, `step` floats apart, of which `slots` are kept: a row takes the place of the one `slots` above it.
struct Rows {
    float* data;
    ptrdiff_t step;
    int slots;
    float* at(int y) const { return data + (y % slots) * step; }
    Rows from_channel(int c) const { return {data + c, step, slots}; }
};
constexpr int every_row = 0x7fffffff;
INLINE Rows rows_of(const View& map, int image) { return {map.at(image), map.row, every_row}; }
// Index i of an endless row that bounces between 0 and n-1 (numpy's "reflect"); n = 1 gives 0.
INLINE int reflect(int i, int n) {
    if (n == 1) return 0;
    const int period = 2 * (n - 1);
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

struct Problem {
    int B, H, W, N, d, C, S, Ho, Wo, relu, threads;
    float softmax_scale;
    View q, k, v;  // q at the output resolution
    // The position p of pixel (y, x), in coordinates from -1 to 1, is weight_x * x + weight_y * y; null for none.
    const float *weight_x, *weight_y;
    // For every padded column, from `reach` before the map on: its pixel, and that pixel's coordinate.
    const int* column;
    const float* column_x;
    Scratch tables;  // holds these
    bool fits;       // whether there was memory for them

    Problem(const ConvattnWindow& s, const float* position)
        : B(s.batch), H(s.height), W(s.width), N(s.heads), d(s.head_dim), C(N * d), S(s.stride), Ho((H - 1) / S + 1),
          Wo((W - 1) / S + 1), relu(s.relu), threads(s.threads), softmax_scale(s.softmax_scale) {
        const int columns = S * (Wo + 4 * native_lanes) + K;
        fits = tables.reserve(2 * (size_t)columns + 2 * (size_t)d);
        if (!fits) return;
        int* pixels = tables.take_ints(columns);
        float *coordinates = tables.take(columns), *along_x = tables.take(d), *along_y = tables.take(d);
        for (int k = 0; k < columns; k++) {
            pixels[k] = reflect(k - reach, W);
            coordinates[k] = W > 1 ? 2.f * pixels[k] / (W - 1) - 1.f : -1.f;
        }
        for (int c = 0; position && c < d; c++) along_x[c] = position[2 * c], along_y[c] = position[2 * c + 1];
        column = pixels, column_x = coordinates;
        weight_x = position ? along_x : nullptr, weight_y = position ? along_y : nullptr;
    }
    Problem(const Problem&) = delete;

    float row_y(int y) const { return H > 1 ? 2.f * y / (H - 1) - 1.f : -1.f; }
    // How many rows to keep of the maps that a block of output rows reads.
    int slots() const { return smaller(H, S * (block_rows - 1) + K + S); }
};

// The position of the keys in a row, from some padded column on; no weights where there is none.
struct KeyPosition {
    const float *weight_x, *weight_y, *x;
    float y;
};

// dst[c*dst_step + lane] = factor * (src[offset[lane] + c] - p[c]); pairs are moved as they are.
template <int L, class E = Floats>
void to_planar(const float* src, const ptrdiff_t* offset, float factor, int channels, float* dst, size_t dst_step,
               KeyPosition p = {nullptr, nullptr, nullptr, 0.f}) {
    int c = 0;
    auto square = [&](auto size, int lane) UNROLLED {
        constexpr int M = size.value;
        Vec<M> r[M];
        repeat<M>([&](auto i) UNROLLED { r[i] = load<M>(src + offset[lane + i] + c); });
        transpose<M>(r);
        if constexpr (E::each == 1) {
            if (p.weight_x) {
                const Vec<M> x = load<M>(p.x + lane);
                repeat<M>([&](auto i) UNROLLED { r[i] -= x * p.weight_x[c + i] + p.y * p.weight_y[c + i]; });
            }
            repeat<M>([&](auto i) UNROLLED { r[i] *= factor; });
        }
        repeat<M>([&](auto i) UNROLLED { store<M>(dst + (c + i) * dst_step + lane, r[i]); });
    };
    for (; c + L <= channels; c += L) square(Index<L>{}, 0);
    if constexpr (L >= 8) {
        constexpr int half = L / 2;
        for (; c + half <= channels; c += half) {
            square(Index<half>{}, 0);
            square(Index<half>{}, half);
        }
    }
    for (; c < channels; c++)
        for (int i = 0; i < L; i++) {
            const float* from = src + offset[i] + c;
            if constexpr (E::each == 1) {
                const float at = p.weight_x ? p.x[i] * p.weight_x[c] + p.y * p.weight_y[c] : 0.f;
                dst[c * dst_step + i] = factor * (*from - at);
            } else {
                __builtin_memcpy(dst + c * dst_step + i, from, 4);
            }
        }
}

// The rows of k - p (or of v; of k as pairs of channels) that a block of query rows looks at, one head of one image, planar.
// Padded column S*i + f of channel c of row y is row(y)[(c*S + f)*plane + i].
template <int L, class E = Floats> struct PlanarRows {
    const Problem& p;
    Rows src;  // from the head's channel 0 on
    ptrdiff_t src_pixel;
    bool positioned;  // whether p is subtracted
    int channels, slots, plane, filled, next;
    size_t slot_size;
    float* data;

    static void* operator new(size_t, void* where) { return where; }
    static int span(const Problem& p) { return (K - 1) / p.S + 1; }
    static int plane_size(const Problem& p) {
        const int n = round_up(p.Wo + larger(2 * L, L + span(p)), L);
        return n % 32 ? n : n + 16;  // a multiple of 32 would put all channels into few cache sets
    }
    static size_t floats(const Problem& p) { return (size_t)p.slots() * (p.d / E::each) * p.S * plane_size(p); }

    PlanarRows(const Problem& p, const Rows& map, ptrdiff_t pixel, int head, bool positioned, int first_row)
        : p(p), src(map.from_channel(head * (p.d / E::each))), src_pixel(pixel), positioned(positioned),
          channels(p.d / E::each), slots(p.slots()), plane(plane_size(p)), filled(smaller(plane, round_up(p.Wo + span(p), L))),
          next(first_row), slot_size((size_t)channels * p.S * plane), data(scratch.take(floats(p))) {
        memset(data, 0, floats(p) * 4);
    }
    float* row(int y) const { return data + (y % slots) * slot_size; }

    void load_until(int last) {
        const bool with_position = positioned && p.weight_x;
        for (; next <= last; next++)
            for (int f = 0; f < p.S; f++)
                for (int i0 = 0; i0 < filled; i0 += L) {
                    ptrdiff_t offset[L];
                    alignas(64) float x[L];
                    for (int l = 0; l < L; l++) {
                        const int column = p.S * (i0 + l) + f;
                        offset[l] = p.column[column] * src_pixel;
                        x[l] = p.column_x[column];
                    }
                    const KeyPosition at = {with_position ? p.weight_x : nullptr, p.weight_y, x, p.row_y(next)};
                    to_planar<L, E>(src.at(next), offset, 1.f, channels, row(next) + f * plane + i0, (size_t)p.S * plane, at);
                }
    }
};

// What the logits of an output row i and a column dx of row r of the block's keys begin with.
template <int L> struct FromZero {
    INLINE Vec<L> operator()(int, int, int) const { return Vec<L>{}; }
};

// logits[i][dy*K+dx][lane] = begin + sum_c q[c][i][lane] * key(row S*i+dy, column S*lane+dx)[c], for R query rows.
// Each key row serves all the query rows that see it; the K shifts of a row come from two loads.
template <class E, int L, int S, int R, class Begin>
void similarity(const float* q, const float* const* key_rows, int x0, int plane, int channels, const Begin& begin, float* logits) {
    repeat<S*(R - 1) + K>([&](auto r) UNROLLED {
        constexpr int first = larger(0, ceil_div(r.value - K + 1, S)), last = smaller(R - 1, r.value / S);
        constexpr int rows = last - first + 1;
        if constexpr (rows > 0) {
            constexpr int budget = vector_registers == 32 ? 21 : 12;  // registers for sums
            constexpr int pieces = ceil_div(K, larger(1, budget / rows));
            repeat<pieces>([&](auto piece) UNROLLED {
                constexpr int dx0 = piece.value * K / pieces, columns = (piece.value + 1) * K / pieces - dx0;
                Vec<L> sum[rows][columns];
                repeat<rows>([&](auto i) UNROLLED {
                    repeat<columns>([&](auto j) UNROLLED { sum[i][j] = begin(first + i, r, dx0 + j); });
                });
                const float* key = key_rows[r] + x0;
                const float* query = q + first * L;
                for (int c = 0; c < channels; c++, key += S * plane, query += R * L) {
                    Vec<L> a[S], b[S], qv[rows];
                    if constexpr (L == 16)
                        repeat<S>([&](auto f) UNROLLED {
                            a[f] = load<L>(key + f * plane);
                            b[f] = load<L>(key + f * plane + L);
                            PIN(a[f]);
                            PIN(b[f]);
                        });
                    repeat<rows>([&](auto i) UNROLLED {
                        qv[i] = load<L>(query + i * L);
                        PIN(qv[i]);
                    });
                    repeat<columns>([&](auto j) UNROLLED {
                        constexpr int dx = dx0 + j.value;
                        Vec<L> k;
                        if constexpr (L == 16) k = lanes_from<L, dx / S>(a[dx % S], b[dx % S]);
                        else k = load<L>(key + (dx % S) * plane + dx / S);
                        PIN(k);
                        repeat<rows>([&](auto i) UNROLLED { sum[i][j] = E::template add_product<L>(sum[i][j], qv[i], k); });
                    });
                }
                repeat<rows>([&](auto i) UNROLLED {
                    constexpr int dy = r.value - S * (first + i.value);
                    repeat<columns>([&](auto j) UNROLLED {
                        store<L>(logits + (((first + i) * K + dy) * K + dx0 + j) * L, sum[i][j]);
                    });
                });
            });
        }
    });
}

template <int L, int S, class E = Floats, class Begin = FromZero<L>>
void similarity_of_rows(int rows, const float* q, const float* const* key_rows, int x0, int plane, int channels, float* logits,
                        const Begin& begin = {}) {
    if (rows == 4) similarity<E, L, S, 4>(q, key_rows, x0, plane, channels, begin, logits);
    else if (rows == 3) similarity<E, L, S, 3>(q, key_rows, x0, plane, channels, begin, logits);
    else if (rows == 2) similarity<E, L, S, 2>(q, key_rows, x0, plane, channels, begin, logits);
    else similarity<E, L, S, 1>(q, key_rows, x0, plane, channels, begin, logits);
}

// q (or dout) of a tile, rows y and on of a head, planar: dst[c][row][lane].
template <int L, class E = Floats>
void planar_queries(const Rows& head, ptrdiff_t pixel, int y, int rows, int x0, int last_x, float factor, int channels, float* dst) {
    ptrdiff_t offset[L];
    for (int l = 0; l < L; l++) offset[l] = smaller(x0 + l, last_x) * pixel;
    for (int i = 0; i < rows; i++)
        to_planar<L, E>(head.at(y + i), offset, factor, channels, dst + i * L, (size_t)rows * L);
}

// Calls f(Index<V>, c0) for vectors of channels, then for what is left over.
template <class F> INLINE void over_channels(int d, F f) {
    int c = 0;
    for (; c + native_lanes <= d; c += native_lanes) f(Index<native_lanes>{}, c);
    if constexpr (native_lanes > 8)
        if (c + 8 <= d) f(Index<8>{}, c), c += 8;
    if constexpr (native_lanes > 4)
        if (c + 4 <= d) f(Index<4>{}, c), c += 4;
    for (; c < d; c++) f(Index<1>{}, c);
}

// Cuts the queries of a tile into strips that fit the registers, of `Most` at most: f(Index<Q>, first query). A multiple of 7
// suits maps of 7, 14, 28 and 56 columns, a power of two the others.
template <int L, int S, int Most = 16, class F> INLINE void in_strips(int valid, F f) {
    constexpr int wide = smaller(S == 1 ? L : L / 2, Most), narrow = L >= 8 ? wide * 7 / 8 : wide;
    if (narrow < wide && valid <= L / wide * narrow)
        for (int x = 0; x < valid; x += narrow) f(Index<narrow>{}, x);
    else
        for (int x = 0; x < valid; x += wide) f(Index<wide>{}, x);
}

// A weighted sum's taps in a row of the window and the column that each begins with. Pairs take two columns at a time; the
// last begins one column early, as a column beyond the window may hold NaN, and gives that column no weight.
template <class E> constexpr int row_taps = ceil_div(K, E::each);
template <class E> constexpr int tap_column(int tap) { return smaller(E::each * tap, K - E::each); }

// Which of the queries from 0 on meets column k by a tap; -1 if none does.
template <class E, int S, int Q> constexpr int query_of(int k, int tap) {
    const int at = k - tap_column<E>(tap);
    return at >= 0 && at % S == 0 && at / S < Q ? at / S : -1;
}
template <class E, int S, int Q> constexpr bool is_read(int k) {
    for (int tap = 0; tap < row_taps<E>; tap++)
        if (query_of<E, S, Q>(k, tap) >= 0) return true;
    return false;
}

// For Q queries from `first` on and M vectors of channels: finish(query, m, sum_j weights[j][query] * source(row of j,
// column of j, m)).
template <class E, int L, int V, int S, int Q, int M, class Source, class Finish>
INLINE void weighted_sum(const float* weights, int first, int valid, Source source, Finish finish) {
    Vec<V> sum[Q][M] = {};
    for (int dy = 0; dy < K; dy++) {
        const float* w = weights + dy * row_taps<E> * L + first;
        repeat<S*(Q - 1) + K>([&](auto k) UNROLLED {
            if constexpr (is_read<E, S, Q>(k.value)) {
                Vec<V> value[M];
                repeat<M>([&](auto m) UNROLLED {
                    value[m] = source(dy, S * first + k, m);
                    PIN(value[m]);
                });
                repeat<row_taps<E>>([&](auto tap) UNROLLED {
                    constexpr int i = query_of<E, S, Q>(k.value, tap.value);
                    if constexpr (i >= 0) {
                        Vec<V> weight = E::template all<V>(w + tap * L + i);
                        if constexpr (M > 1) PIN(weight);  // else a multiply-add may read it itself
                        repeat<M>([&](auto m) UNROLLED { sum[i][m] = E::template add_product<V>(sum[i][m], value[m], weight); });
                    }
                });
            }
        });
    }
    repeat<Q>([&](auto i) UNROLLED {
        repeat<M>([&](auto m) UNROLLED {
            if (first + i < valid) finish(first + i, m, sum[i][m]);
        });
    });
}

// finish(Index<V>, c0, query, sum) for all queries of a tile row and all channels; weights [K*row_taps][L].
template <int L, int S, class E = Floats, class Source, class Finish>
INLINE void weighted_sums(const Problem& p, const float* weights, int valid, Source source, Finish finish) {
    auto vectors = [&](auto v, auto count, int c0) UNROLLED {
        constexpr int V = v.value, M = count.value;
        in_strips<L, S, 16 / M>(valid, [&](auto Q, int x) UNROLLED {
            weighted_sum<E, L, V, S, Q.value, M>(
                weights, x, valid, [&](int dy, int k, int m) UNROLLED { return source(v, c0 + m * V, dy, k); },
                [&](int x, int m, Vec<V> sum) UNROLLED { finish(v, c0 + m * V, x, sum); });
        });
    };
    int begin = 0;
    if constexpr (vector_registers == 32)  // two vectors share the loads of weights
        for (; begin + 2 * native_lanes <= p.d; begin += 2 * native_lanes) vectors(Index<native_lanes>{}, Index<2>{}, begin);
    over_channels(p.d - begin, [&](auto v, int c) UNROLLED {
        constexpr int V = v.value;
        if constexpr (V >= 4) {
            vectors(v, Index<1>{}, begin + c);
        } else {
            for (int x = 0; x < valid; x++) {
                Vec<V> sum = {};
                const float* w = weights + x;
                for (int dy = 0; dy < K; dy++)
                    for (int tap = 0; tap < row_taps<E>; tap++, w += L)
                        sum = E::template add_product<V>(sum, source(v, begin + c, dy, S * x + tap_column<E>(tap)), E::template all<V>(w));
                finish(v, begin + c, x, sum);
            }
        }
    });
}

INLINE int tile_width(int width, int lanes) { return ceil_div(width, ceil_div(width, lanes)); }

}  // namespace
