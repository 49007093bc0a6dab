// Scratch for tests (-DCONVATTN_GUARD, instead of that in vectors.h): every piece lies in pages of its own and ends where
// they end, before a page that nobody may touch; so a kernel that reads or writes past a piece stops there. Another such
// page lies before them. The memory is filled with NaN, as ints -1, so that what was never written shows as well.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace {

struct Scratch {
    static constexpr size_t page = 4096;
    struct Piece {  // in a page before the first guard
        Piece* before;
        size_t bytes;
    };
    Piece* last = nullptr;
    size_t size = 0, used = 0;
    ~Scratch() { release(); }
    void release() {
        while (Piece* piece = last) {
            last = piece->before;
            munmap(piece, piece->bytes);
        }
    }
    bool reserve(size_t floats, int pieces = 32) {
        release();
        used = 0, size = floats * 4 + 64 * (size_t)pieces;
        return true;
    }
    float* take(size_t floats) {
        used += (floats * 4 + 63) / 64 * 64;
        if (used > size) fail("more is taken than was reserved", used, size);
        const size_t room = (floats * 4 + page - 1) / page * page, bytes = room + 3 * page;
        char* base = (char*)mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED || mprotect(base, page, PROT_READ | PROT_WRITE) ||
            (room && mprotect(base + 2 * page, room, PROT_READ | PROT_WRITE)))
            fail("no memory for a piece", bytes, 0);
        *(Piece*)base = {last, bytes};
        last = (Piece*)base;
        memset(base + 2 * page, 0xff, room);
        return (float*)(base + 2 * page + room - floats * 4);
    }
    int* take_ints(size_t count) { return (int*)take(count); }
    template <class T> T* take_array(size_t count) { return (T*)take((sizeof(T) + 3) / 4 * count); }
    [[noreturn]] static void fail(const char* what, size_t got, size_t limit) {
        fprintf(stderr, "guarded scratch: %s: %zu bytes, %zu\n", what, got, limit);
        abort();
    }
};

}  // namespace
