// Entry points over a window of one size, CONVATTN_WINDOW. OpenMP calls stay unresolved in the library and bind to the
// runtime torch has loaded.
#include "acmix_backward.h"
#include "acmix_layer.h"

namespace {

template <int L, int S> void attention_unit(const Problem& p, const View& out, const Unit& u) {
    typedef ForwardAttention<L, S> Attention;
    if (!scratch.reserve(key_ring_floats<L, Floats>(p, u.heads()) + Attention::Buffers::floats(p), 32 + 2 * u.heads())) return;
    typename Attention::Buffers buffers(p);
    PlanarRows<L>* keys = key_rings<L, Floats>(p, rows_of(p.k, u.b), u);
    for (int y = u.y_begin; y < u.y_end; y += block_rows)
        for (int n = u.n_begin; n < u.n_end; n++)
            Attention::block(p, buffers, keys[n - u.n_begin], rows_of(p.q, u.b), rows_of(p.v, u.b), out, u.b, n, y,
                             smaller(block_rows, u.y_end - y),
                             [](auto v, float* o, int, auto sum) UNROLLED { store<v.value>(o, sum); });
}

constexpr size_t widened_floats = 768 * 1024;  // rows of a band in float32: what a second-level cache and some of the third hold

// Maps in half precision, computed with in float32.
template <class T> void acmix_half(Problem& p, const T* qkv, const Tables& tables, T* out) {
    const size_t row = (size_t)p.W * 3 * p.C, out_row = (size_t)p.Wo * p.C;
    const int limit = larger(4 * block_rows, (int)smaller((int64_t)p.Ho, (int64_t)(widened_floats / row) / p.S));
    choose_window(p, [&](auto L, auto S) {
        over_units(p, converting_cut(p, limit), [&](const Unit& u) {
            const int first = first_row_read(p, u.y_begin), rows = last_row_read(p, u.y_end - 1) - first + 1;
            if (!half_rows.reserve(rows * row + block_rows * out_row)) return;
            WidenedRows<T> read = {qkv + (size_t)u.b * p.H * row, half_rows.take(rows * row), row, first, first};
            NarrowedRows<T> written = narrowed_rows(p, u, out);
            const Rows maps = {read.data - (ptrdiff_t)first * (ptrdiff_t)row, (ptrdiff_t)row, every_row};
            const Rows block = {written.block, (ptrdiff_t)out_row, 1};  // every block of rows begins it anew
            const Band band = band_of(p, maps, block, &read, &written);
            acmix_unit<decltype(L)::value, decltype(S)::value>(p, convolution_of(p), tables, band, u);
        });
    });
}

}  // namespace

// WINDOW_ENTRY(name, parameters, arguments) { ... }: the entry point for this size. That of the papers' window is everybody's,
// and passes calls for other sizes on.
#define NAME_OF_SIZE(name, size) CONVATTN_PASTE(CONVATTN_PASTE(name, size), CONVATTN_ISA)
#if CONVATTN_WINDOW == 7
#define WINDOW_ENTRY(name, parameters, arguments)                          \
    extern "C" int NAME_OF_SIZE(name, 3) parameters;                       \
    extern "C" int NAME_OF_SIZE(name, 5) parameters;                       \
    static int name##_here parameters;                                     \
    ENTRY(name) parameters {                                               \
        if (s->size == 3) return NAME_OF_SIZE(name, 3) arguments;          \
        if (s->size == 5) return NAME_OF_SIZE(name, 5) arguments;          \
        return name##_here arguments;                                      \
    }                                                                      \
    static int name##_here parameters
#else
#define WINDOW_ENTRY(name, parameters, arguments) extern "C" int NAME_OF_SIZE(name, CONVATTN_WINDOW) parameters
#endif

WINDOW_ENTRY(convattn_acmix_forward,
             (const ConvattnWindow* s, const void* qkv, const float* position, const float* scale, const float* weight,
              const float* bias, void* out),
             (s, qkv, position, scale, weight, bias, out)) {
    const int64_t before = failures;
    Problem p(*s, position);
    if (!p.fits) return 1;
    read_packed(p, packed((const float*)qkv, p.H, p.W, 3 * p.C), p.q, p.k, p.v);  // of halves the distances alone
    const Tables tables = {scale, weight, bias};
    if (s->type == 1) {
        acmix_half(p, (const BFloat16*)qkv, tables, (BFloat16*)out);
        return failures != before;
    }
    if (s->type == 2) {
        acmix_half(p, (const Float16*)qkv, tables, (Float16*)out);
        return failures != before;
    }
    acmix_of_floats(p, (const float*)qkv, tables, (float*)out);
    return failures != before;
}

WINDOW_ENTRY(convattn_acmix_layer_forward,
             (const ConvattnWindow* s, const float* in, const float* projection_weight, const float* projection_bias,
              const float* position, const float* scale, const float* weight, const float* bias, float* qkv, float* out),
             (s, in, projection_weight, projection_bias, position, scale, weight, bias, qkv, out)) {
    const int64_t before = failures;
    const Projection projection = {s->inputs, 3 * s->heads * s->head_dim, projection_weight, projection_bias, s->packed != 0};
    const Layer layer = {projection, in, {scale, weight, bias}, qkv, out};
    const int whole = s->batch - s->batch % s->threads;  // every thread gets as many of these
    acmix_images(*s, position, layer, 0, whole);
    acmix_images(*s, position, layer, whole, s->batch);
    return failures != before;
}

WINDOW_ENTRY(convattn_window_forward,
             (const ConvattnWindow* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v, const ConvattnMap* out),
             (s, q, k, v, out)) {
    const int64_t before = failures;
    Problem p(*s, nullptr);
    if (!p.fits) return 1;
    p.q = View(*q), p.k = View(*k), p.v = View(*v);
    const View out_map(*out);
    choose_window(p, [&](auto L, auto S) {
        over_units(p, Cut(p, [](int) { return true; }), [&](const Unit& u) {
            attention_unit<decltype(L)::value, decltype(S)::value>(p, out_map, u);
        });
    });
    return failures != before;
}

// Which thread adds to which copy of the sums is fixed, so results repeat exactly.
WINDOW_ENTRY(convattn_acmix_backward,
             (const ConvattnWindow* s, const float* qkv, const float* position, float alpha, const float* weight,
              const float* dout, float* dqkv, double* dposition, double* dweight, double* dalpha),
             (s, qkv, position, alpha, weight, dout, dqkv, dposition, dweight, dalpha)) {
    const int64_t before = failures;
    Problem p(*s, position);
    if (!p.fits) return 1;
    const View maps = packed(qkv, p.H, p.W, 3 * p.C), gradients = packed(dqkv, p.H, p.W, 3 * p.C);
    const AcmixGradients gradients_of = {p, weight, alpha, packed(dout, p.Ho, p.Wo, p.C), {dposition, dweight, dalpha}};
    const ConvCut cut(convolution_of(p), parts_of_image(p.B, p.threads));
    const bool whole_images = cut.parts() == 1;
    choose_window(p, [&](auto L, auto S) {
        constexpr int l = decltype(L)::value, stride = decltype(S)::value;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
        {
#pragma omp for schedule(static, 1)
            for (int slice = 0; slice < p.threads; slice++)
                for (int64_t u = slice; u < (int64_t)p.B * cut.parts(); u += p.threads) {
                    gradients_of.convolution(slice, cut, u, maps, gradients);
                    for (int n = 0; whole_images && n < p.N; n++) gradients_of.attention<l, stride>(slice, (int)u, n, maps, gradients);
                }
#pragma omp for schedule(static, 1)
            for (int slice = 0; slice < p.threads; slice++)
                for (int64_t u = slice; !whole_images && u < (int64_t)p.B * p.N; u += p.threads)
                    gradients_of.attention<l, stride>(slice, (int)(u / p.N), (int)(u % p.N), maps, gradients);
        }
    });
    return failures != before;
}

WINDOW_ENTRY(convattn_acmix_layer_backward,
             (const ConvattnWindow* s, const float* in, const float* projection_weight, const float* projection_bias, const float* qkv,
              const float* position, float alpha, const float* weight, const float* dout, float* din, float* dprojection,
              double* dprojection_bias, double* dposition, double* dweight, double* dalpha),
             (s, in, projection_weight, projection_bias, qkv, position, alpha, weight, dout, din, dprojection, dprojection_bias, dposition,
              dweight, dalpha)) {
    const int64_t before = failures;
    Problem p(*s, position);
    if (!p.fits) return 1;
    const AcmixGradients gradients = {p, weight, alpha, packed(dout, p.Ho, p.Wo, p.C), {dposition, dweight, dalpha}};
    const Projection projection = {s->inputs, 3 * p.C, projection_weight, projection_bias, false};
    acmix_layer_backward(gradients, {projection, in, qkv, din, dprojection, dprojection_bias});
    return failures != before;
}

WINDOW_ENTRY(convattn_window_backward,
             (const ConvattnWindow* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v, const ConvattnMap* dout,
              const ConvattnMap* dq, const ConvattnMap* dk, const ConvattnMap* dv),
             (s, q, k, v, dout, dq, dk, dv)) {
    const int64_t before = failures;
    Problem p(*s, nullptr);
    if (!p.fits) return 1;
    const Attended maps = {View(*q), View(*k), View(*v)};
    const WindowGradients grad = {View(*dq), View(*dk), View(*dv), nullptr};
    const View dout_map(*dout);
    choose_window(p, [&](auto L, auto S) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(p.threads) if (p.threads > 1)
        for (int64_t u = 0; u < (int64_t)p.B * p.N; u++) {
            typedef BackwardAttention<decltype(L)::value, decltype(S)::value> Attention;
            if (!scratch.reserve(Attention::floats(p))) continue;
            Attention head(p, maps, grad, dout_map, 1.f, (int)(u / p.N), (int)(u % p.N));
            head.run();
        }
    });
    return failures != before;
}
