// Says how ACmix's passes cut their work for some threads, without running them. Reads lines of
//   batch rows columns heads head_dim stride threads
// and answers each with three shares, of the forward pass, of the convolution's backward pass and of the projection, what the
// busiest thread computes; and how often the forward pass reads a row of keys.
#include "../../csrc/group_conv.h"
#include "../../csrc/projection.h"
#include "../../csrc/window_forward.h"

#include <stdio.h>
#include <vector>

// Units go to whichever thread has least to do, as they do when threads take them one by one.
struct Threads {
    std::vector<double> busy;
    double all = 0;
    explicit Threads(int count) : busy(count) {}
    void take(double work) {
        size_t least = 0;
        for (size_t t = 1; t < busy.size(); t++)
            if (busy[t] < busy[least]) least = t;
        busy[least] += work, all += work;
    }
    double busiest() const {
        double most = 0;
        for (double work : busy) most = work > most ? work : most;
        return most / all;
    }
};

int main() {
    ConvattnWindow s = {};
    while (scanf("%d %d %d %d %d %d %d", &s.batch, &s.height, &s.width, &s.heads, &s.head_dim, &s.stride, &s.threads) == 7) {
        Problem p(s, nullptr);
        const int threads = p.threads;
        p.threads = 1;  // one after another
        Threads forward(threads), backward(threads), projection(threads);
        double rows_read = 0;
        ConvattnWindow many = s;
        many.threads = threads;
        const Problem asked(many, nullptr);
        over_units(p, acmix_cut(asked), [&](const Unit& u) {
            forward.take((u.y_end - u.y_begin) * u.heads());
            rows_read += (last_row_read(p, u.y_end - 1) + 1 - first_row_read(p, u.y_begin)) * u.heads();
        });
        const GroupConv conv(p.H, p.W, p.S, 3 * p.N, p.N, p.d);
        const ConvCut cut(conv, parts_of_image(p.B, threads));
        for (int64_t i = 0; i < (int64_t)p.B * cut.parts(); i++) {
            const ConvUnit u(conv, cut, i);
            backward.take((u.y_end - u.y_begin) * u.groups);
        }
        const ProjectionCut shares = projection_cut((int64_t)p.B * p.H * p.W, ceil_div(3 * p.C, projection_block), threads);
        for (int64_t part = 0; part < shares.parts; part++)
            for (int split = 0; split < shares.splits; split++) {
                const int64_t pixels = shares.first_pixel(part + 1) - shares.first_pixel(part);
                projection.take((double)pixels * (shares.first_block(split + 1) - shares.first_block(split)));
            }
        printf("%g %g %g %g\n", forward.busiest(), backward.busiest(), projection.busiest(), rows_read / ((double)p.B * p.H * p.N));
    }
}
