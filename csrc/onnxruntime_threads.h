// The part of GCC's OpenMP runtime that the forward kernels call, on the threads of the onnxruntime session that runs them:
// its threads wait by spinning, so a second set of threads would have to share their cores.
#pragma once
#include "onnxruntime_abi.h"

#include <atomic>
#include <stdlib.h>

namespace {

// Who runs kernels on this thread; set for the time of a computation.
struct Runner {
    ort::Api api;
    const ort::Context* context;
};
thread_local const Runner* runner = nullptr;

struct Team {
    void (*body)(void*);
    void* data;
    unsigned size;
    std::atomic<long> taken;  // chunks of its one loop
    const Runner* runner;
};
struct Member {
    Team* team;
    unsigned number;
    long begin, end, step;  // of the loop, a chunk of it
};
thread_local Member member = {nullptr, 0, 0, 0, 0};

void run_member(void* of, size_t number) {
    Team* team = (Team*)of;
    const Member outer = member;
    const Runner* outer_runner = runner;
    member = {team, (unsigned)number, 0, 0, 0};
    runner = team->runner;
    team->body(team->data);
    member = outer;
    runner = outer_runner;
}

}  // namespace

#define HIDDEN extern "C" __attribute__((visibility("hidden")))

HIDDEN int omp_get_thread_num() { return member.team ? (int)member.number : 0; }
HIDDEN int omp_get_num_threads() { return member.team ? (int)member.team->size : 1; }

HIDDEN void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
    Team team = {body, data, threads ? threads : 1, {0}, runner};
    ort::Status* failed = nullptr;
    const bool alone = !runner || team.size == 1;
    if (!alone)
        failed = ort::call<ort::Status*(const ort::Context*, void (*)(void*, size_t), size_t, size_t, void*)>(
            runner->api, ort::parallel_for, runner->context, run_member, (size_t)team.size, (size_t)team.size, (void*)&team);
    if (alone || failed) {
        team.size = 1;
        run_member(&team, 0);
    }
    if (failed) ort::call<void(ort::Status*)>(runner->api, ort::release_status, failed);
}

// Every region of the forward kernels is one loop, dealt out chunk by chunk.
HIDDEN bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
    const long chunk = member.team->taken.fetch_add(1, std::memory_order_relaxed);
    *first = member.begin + chunk * member.step;
    *last = *first + member.step < member.end ? *first + member.step : member.end;
    return *first < member.end;
}
HIDDEN bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long increment, long chunk, long* first, long* last) {
    if (increment != 1) abort();
    member.begin = begin, member.end = end, member.step = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}
HIDDEN void GOMP_loop_end_nowait() {}
// Only gradients wait for each other; no operator here computes one.
HIDDEN void GOMP_barrier() { abort(); }
