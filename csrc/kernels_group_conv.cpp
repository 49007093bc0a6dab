// Entry points of the group convolution.
#include "group_conv.h"

ENTRY(convattn_group_conv_forward)(const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const float* bias,
                                   const ConvattnMap* out) {
    const int64_t before = failures;
    const GroupConv conv(s->height, s->width, s->stride, s->inputs, s->outputs, s->groups);
    const View from(*in), to(*out);
    const int bands = s->batch % s->threads == 0 || s->batch / 4 >= s->threads ? 1 : smaller(s->threads, conv.Ho);
#pragma omp parallel for schedule(dynamic, 1) num_threads(s->threads) if (s->threads > 1)
    for (int64_t u = 0; u < (int64_t)s->batch * bands; u++) {
        const size_t input = (size_t)conv.T * conv.d;
        if (!scratch.reserve((size_t)conv.Wo * conv.C + input)) continue;
        float* row = scratch.take((size_t)conv.Wo * conv.C);
        float* zeros = scratch.take(input);
        memset(zeros, 0, input * sizeof(float));
        const int64_t band = u % bands;
        const int b = (int)(u / bands);
        conv_forward_rows(conv, rows_of(from, b), from.pixel, weight, bias, zeros, row, to, b, first_of_part(conv.Ho, band, bands),
                          first_of_part(conv.Ho, band + 1, bands));
    }
    return failures != before;
}

// Which thread adds to which copy of dweight is fixed, so results repeat exactly.
ENTRY(convattn_group_conv_backward)(const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const ConvattnMap* dout,
                                    const ConvattnMap* din, double* dweight) {
    const int64_t before = failures;
    const GroupConv conv(s->height, s->width, s->stride, s->inputs, s->outputs, s->groups);
    const View from(*in), grad(*dout), to(*din);
#pragma omp parallel for schedule(static, 1) num_threads(s->threads) if (s->threads > 1)
    for (int slice = 0; slice < s->threads; slice++)
        for (int b = slice; b < s->batch; b += s->threads)
            conv_backward_image(conv, from, b, weight, grad, to, dweight + slice * conv.weights());
    return failures != before;
}
