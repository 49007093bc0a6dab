// ACmix's convolution path with fc folded in: d groups, T inputs (3N in ACmix itself) and N outputs each, zero border,
// kernel 3x3.
//   out[g*N+o] = sum_{t,tap} weight[t][tap][o][g] * qkv[t*d+g]
// Lanes are groups. Inside, outputs lie planar, [o][g].
#pragma once
#include "window.h"

namespace {

constexpr int conv_k = 3, conv_taps = conv_k * conv_k;

struct GroupConv {
    int H, W, Ho, Wo, S, T, N, d, C;  // C = N*d outputs
    int groups;                       // of them to compute, from those on that the pointers point at
    GroupConv(int H, int W, int S, int T, int N, int d)
        : H(H), W(W), Ho((H - 1) / S + 1), Wo((W - 1) / S + 1), S(S), T(T), N(N), d(d), C(N * d), groups(d) {}
    GroupConv of_groups(int count) const {
        GroupConv part = *this;
        part.groups = count;
        return part;
    }
    int outputs() const { return N * groups; }
    size_t weights() const { return (size_t)T * conv_taps * C; }
};

constexpr int weight_rows = 4;  // rows of outputs whose weight gradient is summed in float32 before it is added in float64

// How an image is cut where it makes several units of work: between groups, which read nothing twice, then between rows of outputs.
struct ConvCut {
    int groups, bands;
    ConvCut(const GroupConv& p, int wanted) : groups(1) {
        for (int g = 2; g <= wanted; g++)
            if (wanted % g == 0 && whole_vectors(p.d, g)) groups = g;
        bands = smaller(ceil_div(wanted, groups), ceil_div(p.Ho, weight_rows));
    }
    int parts() const { return groups * bands; }
};
// One of them: groups from `group` on, rows y_begin to y_end of outputs of image b.
struct ConvUnit {
    int b, group, groups, y_begin, y_end;
    ConvUnit(const GroupConv& p, const ConvCut& cut, int64_t unit) {
        const int part = (int)(unit % cut.parts()), band = part / cut.groups;
        b = (int)(unit / cut.parts()), groups = p.d / cut.groups, group = part % cut.groups * groups;
        y_begin = first_of_part(p.Ho, band, cut.bands), y_end = first_of_part(p.Ho, band + 1, cut.bands);
    }
};

// Weights of a small convolution: input t of tap (ty, tx) to output o, lane g: w[t*in + ty*tap_y + tx*tap_x + o*out + g].
struct ConvWeights {
    const float* w;
    ptrdiff_t in, tap_y, tap_x, out;
};

// P pixels x O outputs in registers. pixel[row*columns + column] points at channel 0 of an input pixel, or at zeros;
// input t of a pixel lies t*in_step further.
template <class E, int V, int KY, int KX, int S, int P, int O, class Finish>
INLINE void conv_tile(const float* const* pixel, int c0, int inputs, int in_step, ConvWeights w, Finish finish) {
    constexpr int columns = S * (P - 1) + KX;
    Vec<V> sum[P][O] = {};
    for (int t = 0; t < inputs; t++)
        for (int dy = 0; dy < KY; dy++) {
            const float* wt = w.w + t * w.in + dy * w.tap_y + c0;
            const ptrdiff_t at = (ptrdiff_t)t * in_step + c0;
            Vec<V> tap[KX][O];
            repeat<KX>([&](auto dx) UNROLLED {
                repeat<O>([&](auto o) UNROLLED {
                    tap[dx][o] = load<V>(wt + dx * w.tap_x + o * w.out);
                    PIN(tap[dx][o]);
                });
            });
            repeat<columns>([&](auto k) UNROLLED {
                Vec<V> x = load<V>(pixel[dy * columns + k] + at);
                PIN(x);
                repeat<KX>([&](auto dx) UNROLLED {
                    constexpr int from = k.value - dx.value;
                    if constexpr (from >= 0 && from % S == 0 && from / S < P)
                        repeat<O>([&](auto o) UNROLLED { sum[from / S][o] = E::template add_product<V>(sum[from / S][o], x, tap[dx][o]); });
                });
            });
        }
    repeat<P>([&](auto i) UNROLLED { repeat<O>([&](auto o) UNROLLED { finish(i, o, sum[i][o]); }); });
}

// One row of outputs: result(Index<V>, c0, x, o, sum). in(dy, x) gives the address of input column x (any integer) of
// the row that tap row dy reads, or of zeros; output x reads the columns S*x to S*x + KX-1. Input t of a pixel lies t*in_step
// further.
template <int KY, int KX, int S, class E = Floats, class Input, class Result>
void conv_row(int width, int groups, int inputs, int in_step, int outputs, ConvWeights w, Input input, Result result) {
    // At stride 2 outputs share few inputs: all four of a pixel at once, so that its inputs are read once.
    constexpr int P = S == 1 ? 7 : 4, columns = S * (P - 1) + KX, O = vector_registers < 32 ? 1 : S == 1 ? 2 : 4;
    for (int x0 = 0; x0 < width; x0 += P) {
        const float* pixel[KY * columns];
        for (int dy = 0; dy < KY; dy++)
            for (int k = 0; k < columns; k++) pixel[dy * columns + k] = input(dy, S * x0 + k);
        const int valid = smaller(P, width - x0);
        over_channels(groups, [&](auto v, int c0) UNROLLED {
            constexpr int V = v.value;
            int o = 0;
            auto finish = [&](int i, int oo, Vec<V> sum) UNROLLED {
                if (i < valid) result(v, c0, x0 + i, o + oo, sum);
            };
            auto from = [&](int o) UNROLLED { return ConvWeights{w.w + o * w.out, w.in, w.tap_y, w.tap_x, w.out}; };
            for (; o + O <= outputs; o += O) conv_tile<E, V, KY, KX, S, P, O>(pixel, c0, inputs, in_step, from(o), finish);
            if constexpr (O > 1)
                for (; o < outputs; o++) conv_tile<E, V, KY, KX, S, P, 1>(pixel, c0, inputs, in_step, from(o), finish);
        });
    }
}

// planar[o*d + g] -> interleaved[g*N + o], and back
void interleave(const float* planar, int N, int d, const float* bias, float* out) {
    constexpr int L = native_lanes;
    int g = 0;
    if (N == 4)
        for (; g + L <= d; g += L) {
            Vec<L> a = load<L>(planar + g), b = load<L>(planar + d + g), c = load<L>(planar + 2 * d + g), e = load<L>(planar + 3 * d + g);
            Vec<L> ac[2], be[2], r[4];
            typename MakeIndices<L>::type lanes;
            zip(a, c, ac[0], ac[1], lanes);
            zip(b, e, be[0], be[1], lanes);
            zip(ac[0], be[0], r[0], r[1], lanes);
            zip(ac[1], be[1], r[2], r[3], lanes);
            repeat<4>([&](auto i) UNROLLED {
                store<L>(out + 4 * g + i * L, r[i] + (bias ? load<L>(bias + 4 * g + i * L) : Vec<L>{}));
            });
        }
    for (; g < d; g++)
        for (int o = 0; o < N; o++) out[g * N + o] = planar[o * d + g] + (bias ? bias[g * N + o] : 0.f);
}
void deinterleave(const float* in, int N, int d, float* planar) {
    constexpr int L = native_lanes;
    int g = 0;
    if (N == 4)
        for (; g + L <= d; g += L) {
            typename MakeIndices<L>::type lanes;
            Vec<L> r[4], ac[2], be[2], a[4];
            repeat<4>([&](auto i) UNROLLED { r[i] = load<L>(in + 4 * g + i * L); });
            unzip(r[0], r[1], ac[0], be[0], lanes);
            unzip(r[2], r[3], ac[1], be[1], lanes);
            unzip(ac[0], ac[1], a[0], a[2], lanes);
            unzip(be[0], be[1], a[1], a[3], lanes);
            repeat<4>([&](auto o) UNROLLED { store<L>(planar + o * d + g, a[o]); });
        }
    for (; g < d; g++)
        for (int o = 0; o < N; o++) planar[o * d + g] = in[g * N + o];
}

// row: working memory for one row of outputs. The pixels of `in` hold T maps, or T pairs of maps.
template <class E = Floats>
void conv_forward_rows(const GroupConv& p, const Rows& in, ptrdiff_t in_pixel, const float* weight, const float* bias, const float* zeros,
                       float* row, const View& out, int b, int y_begin, int y_end) {
    const ConvWeights w = {weight, (ptrdiff_t)conv_taps * p.C, conv_k * p.C, p.C, p.d};
    for (int y = y_begin; y < y_end; y++) {
        const float* in_rows[conv_k];
        for (int dy = 0; dy < conv_k; dy++) {
            const int in_y = p.S * y + dy - 1;
            in_rows[dy] = in_y < 0 || in_y >= p.H ? nullptr : in.at(in_y);
        }
        auto input = [&](int dy, int x) UNROLLED -> const float* {
            const int in_x = x - 1;
            return !in_rows[dy] || in_x < 0 || in_x >= p.W ? zeros : in_rows[dy] + in_x * in_pixel;
        };
        auto result = [&](auto v, int c0, int x, int o, auto sum) UNROLLED {
            store<v.value>(row + (size_t)x * p.outputs() + o * p.groups + c0, sum);
        };
        if (p.S == 1) conv_row<conv_k, conv_k, 1, E>(p.Wo, p.groups, p.T, p.d, p.N, w, input, result);
        else conv_row<conv_k, conv_k, 2, E>(p.Wo, p.groups, p.T, p.d, p.N, w, input, result);
        for (int x = 0; x < p.Wo; x++) interleave(row + (size_t)x * p.outputs(), p.N, p.groups, bias, out.at(b, y, x));
    }
}

// The gradient of the inputs in row y of one image: written, not added. grad is [pixel][o][g].
// A convolution of the gradient with the taps reversed and inputs and outputs exchanged; at stride 2 an input of an even
// row (column) meets the middle tap only, one of an odd row (column) the two outer taps.
template <int KY, int KX>
void conv_input_gradient_row(const GroupConv& p, const float* grad, const float* weight, const float* zeros, int y, int first_x,
                             const View& dqkv, int b) {
    const int step = p.S, width = (p.W - first_x + step - 1) / step;
    const int tap_y = KY == 1 ? 1 : 2, tap_x = KX == 1 ? 1 : 2;   // the tap of the first row and column read
    const int down = KY == 2 ? -2 : -1, across = KX == 2 ? -2 : -1;  // and the way to the next tap
    const ConvWeights w = {weight + (ptrdiff_t)(tap_y * conv_k + tap_x) * p.C, p.d, (ptrdiff_t)down * conv_k * p.C,
                           (ptrdiff_t)across * p.C, (ptrdiff_t)conv_taps * p.C};
    const int first_y = step == 1 ? y - 1 : y / 2;
    auto input = [&](int dy, int x) UNROLLED -> const float* {
        const int out_y = first_y + dy, out_x = step == 1 ? x - 1 : x;
        return out_y < 0 || out_y >= p.Ho || out_x < 0 || out_x >= p.Wo ? zeros : grad + ((ptrdiff_t)out_y * p.Wo + out_x) * p.outputs();
    };
    conv_row<KY, KX, 1>(width, p.groups, p.N, p.groups, p.T, w, input, [&](auto v, int c0, int x, int t, auto sum) UNROLLED {
        store<v.value>(dqkv.at(b, y, first_x + step * x) + t * p.d + c0, sum);
    });
}

void conv_input_gradient(const GroupConv& p, const float* grad, const float* weight, const float* zeros, const View& dqkv, int b,
                         int y_begin, int y_end) {
    for (int y = y_begin; y < y_end; y++) {
        if (p.S == 1) conv_input_gradient_row<3, 3>(p, grad, weight, zeros, y, 0, dqkv, b);
        else if (y % 2 == 0) {
            conv_input_gradient_row<1, 1>(p, grad, weight, zeros, y, 0, dqkv, b);
            if (p.W > 1) conv_input_gradient_row<1, 2>(p, grad, weight, zeros, y, 1, dqkv, b);
        } else {
            conv_input_gradient_row<2, 1>(p, grad, weight, zeros, y, 0, dqkv, b);
            if (p.W > 1) conv_input_gradient_row<2, 2>(p, grad, weight, zeros, y, 1, dqkv, b);
        }
    }
}

// dweight[t][tap][o][g] += sum over `rows` rows of outputs of qkv[t][g] * dout[o][g], for TY rows of taps and O outputs.
// P outputs of a row at a time: each input is loaded once for all the taps and outputs that it meets.
template <int V, int S, int TY, int P, int O>
INLINE void weight_gradient_tile(const float* const* pixel, int columns, ptrdiff_t at, const float* grad, const GroupConv& p,
                                 Vec<V> (*sum)[conv_k][O]) {
    Vec<V> g[P][O];
    repeat<P>([&](auto x) UNROLLED {
        repeat<O>([&](auto i) UNROLLED {
            g[x][i] = load<V>(grad + (size_t)x * p.outputs() + i * p.groups);
            PIN(g[x][i]);
        });
    });
    repeat<TY>([&](auto dy) UNROLLED {
        repeat<S*(P - 1) + conv_k>([&](auto k) UNROLLED {
            Vec<V> in = load<V>(pixel[dy * columns + k] + at);
            PIN(in);
            repeat<conv_k>([&](auto dx) UNROLLED {
                constexpr int from = k.value - dx.value;
                if constexpr (from >= 0 && from % S == 0 && from / S < P)
                    repeat<O>([&](auto i) UNROLLED { sum[dy][dx][i] += in * g[from / S][i]; });
            });
        });
    });
}
template <int S, int TY, int O>
void conv_weight_gradient(const GroupConv& p, const float* const* pixel /* [S*(rows-1)+3][columns] */, int columns, const float* grad,
                          int rows, int first_dy, int o, double* dweight) {
    constexpr int P = vector_registers == 32 ? 4 : 2;
    for (int t = 0; t < p.T; t++)
        over_channels(p.groups, [&](auto v, int c0) UNROLLED {
            constexpr int V = v.value;
            Vec<V> sum[TY][conv_k][O] = {};
            const ptrdiff_t at = (ptrdiff_t)t * p.d + c0;
            for (int y = 0; y < rows; y++) {
                const float* const* in = pixel + (S * y + first_dy) * columns;
                const float* grad_row = grad + (size_t)y * p.Wo * p.outputs() + o * p.groups + c0;
                int x = 0;
                for (; x + P <= p.Wo; x += P)
                    weight_gradient_tile<V, S, TY, P, O>(in + S * x, columns, at, grad_row + (size_t)x * p.outputs(), p, sum);
                for (; x < p.Wo; x++)
                    weight_gradient_tile<V, S, TY, 1, O>(in + S * x, columns, at, grad_row + (size_t)x * p.outputs(), p, sum);
            }
            double* target = dweight + (((size_t)t * conv_k + first_dy) * conv_k * p.N + o) * p.d + c0;
            repeat<TY * conv_k>([&](auto tap) UNROLLED {
                repeat<O>([&](auto i) UNROLLED {
                    alignas(64) float part[V];
                    store<V>(part, sum[tap / conv_k][tap % conv_k][i]);
                    double* w = target + (size_t)(tap * p.N + i) * p.d;
                    for (int c = 0; c < V; c++) w[c] += part[c];
                });
            });
        });
}
template <int S> void conv_weight_gradients(const GroupConv& p, const float* const* pixel, int columns, const float* grad, int rows, double* dweight) {
    constexpr int TY = vector_registers == 32 ? conv_k : 1;
    for (int dy = 0; dy < conv_k; dy += TY) {
        int o = 0;
        for (; o + 2 <= p.N; o += 2) conv_weight_gradient<S, TY, 2>(p, pixel, columns, grad, rows, dy, o, dweight);
        for (; o < p.N; o++) conv_weight_gradient<S, TY, 1>(p, pixel, columns, grad, rows, dy, o, dweight);
    }
}

// Writes the unit's part of dqkv (the convolution path's share) and adds its share of dweight.
[[maybe_unused]] void conv_backward_unit(const GroupConv& whole, const ConvCut& cut, int64_t unit, const View& qkv, const float* weight, const View& dout,
                        const View& dqkv, double* dweight) {
    const ConvUnit u(whole, cut, unit);
    const GroupConv p = whole.of_groups(u.groups);
    const int columns = p.S * (p.Wo - 1) + conv_k, in_rows = p.S * (weight_rows - 1) + conv_k;
    // the gradient of the inputs reads a row of outputs more on each side
    const int first = larger(0, u.y_begin - 1), last = smaller(p.Ho, u.y_end + 1);
    const size_t grad_row = (size_t)p.Wo * p.outputs();
    const size_t pixel_channels = (size_t)larger(p.T, p.N) * p.d;  // zeros stand for inputs and, for the inputs' gradient, for outputs
    if (!scratch.reserve((last - first) * grad_row + pixel_channels + (size_t)2 * in_rows * columns)) return;
    // dout as [pixel][o][g], from row `first` on
    float* grad = scratch.take((last - first) * grad_row) - first * (ptrdiff_t)grad_row;
    float* zeros = scratch.take(pixel_channels);
    const float** pixel = scratch.take_array<const float*>((size_t)in_rows * columns);
    memset(zeros, 0, pixel_channels * sizeof(float));
    for (int y = first; y < last; y++)
        for (int x = 0; x < p.Wo; x++)
            deinterleave(dout.at(u.b, y, x) + u.group * p.N, p.N, p.groups, grad + y * (ptrdiff_t)grad_row + (ptrdiff_t)x * p.outputs());
    for (int y = u.y_begin; y < u.y_end; y += weight_rows) {
        const int rows = smaller(weight_rows, u.y_end - y);
        for (int r = 0; r < p.S * (rows - 1) + conv_k; r++)
            for (int k = 0; k < columns; k++) {
                const int in_y = p.S * y + r - 1, in_x = k - 1;
                const bool outside = in_y < 0 || in_y >= p.H || in_x < 0 || in_x >= p.W;
                pixel[r * columns + k] = outside ? zeros : qkv.at(u.b, in_y, in_x) + u.group;
            }
        const float* rows_of_grad = grad + y * (ptrdiff_t)grad_row;
        if (p.S == 1) conv_weight_gradients<1>(p, pixel, columns, rows_of_grad, rows, dweight + u.group);
        else conv_weight_gradients<2>(p, pixel, columns, rows_of_grad, rows, dweight + u.group);
    }
    conv_input_gradient(p, grad, weight + u.group, zeros, dqkv.from_channel(u.group), u.b, p.S * u.y_begin, smaller(p.H, p.S * u.y_end));
}

}  // namespace
