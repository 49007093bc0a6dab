// GCC's OpenMP runtime, as much of it as the forward kernels call, on the threads of the runtime that runs them.
#include "runtime_threads.h"

#include <atomic>
#include <stdlib.h>

namespace {

thread_local const Threads* current = nullptr;

struct Team {
    void (*body)(void*);
    void* data;
    unsigned size;
    std::atomic<long> taken;  // chunks of its one loop
    const Threads* threads;
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
    const Threads* outer_threads = current;
    member = {team, (unsigned)number, 0, 0, 0};
    current = team->threads;
    team->body(team->data);
    member = outer;
    current = outer_threads;
}

}  // namespace

RunOn::RunOn(const Threads& threads) : outer(current) { current = &threads; }
RunOn::~RunOn() { current = outer; }

extern "C" {

int omp_get_thread_num() { return member.team ? (int)member.number : 0; }
int omp_get_num_threads() { return member.team ? (int)member.team->size : 1; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
    Team team = {body, data, current && threads > 1 ? current->members(threads) : 1, {0}, current};
    if (team.size > 1 && current->run(run_member, team.size, &team)) return;
    team.size = 1;
    run_member(&team, 0);
}

// Every region of the forward kernels is one loop, dealt out chunk by chunk.
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
    const long chunk = member.team->taken.fetch_add(1, std::memory_order_relaxed);
    *first = member.begin + chunk * member.step;
    *last = *first + member.step < member.end ? *first + member.step : member.end;
    return *first < member.end;
}
bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long increment, long chunk, long* first, long* last) {
    if (increment != 1) abort();
    member.begin = begin, member.end = end, member.step = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}
void GOMP_loop_end_nowait() {}
// Only gradients wait for each other; no operator here computes one.
void GOMP_barrier() { abort(); }

}
