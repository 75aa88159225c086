// Compiles the kernels for a CPU, so that their code can be tested without a GPU.
//
// The threads of a block take turns: each runs until it waits for others (a barrier, a shuffle) or ends. Blocks run one
// after the other, in steps of `stride`, so shared memory can be static. This is slow, and does not detect races
// between warps or between blocks.

#include <algorithm>
#include <cstring>
#include <math.h>
#include <ucontext.h>

#define EMULATED
#define __global__
#define __device__ inline
#define __shared__ static
using std::min;

struct Index { unsigned x, y; };
static Index threadIdx, blockIdx, blockDim, gridDim;

const int MOST = 256, STACK = 1 << 15;
static ucontext_t scheduler, thread[MOST];
static char stack[MOST][STACK];
static bool ended[MOST];

struct Barrier { int waiting, members; unsigned passed; };
static Barrier block, warp[MOST / 32];

static void wait(Barrier& barrier) {
    unsigned before = barrier.passed;
    if (++barrier.waiting == barrier.members) barrier.waiting = 0, barrier.passed++;
    while (barrier.passed == before) swapcontext(&thread[threadIdx.x], &scheduler);
}

static void __syncthreads() { wait(block); }

template <class T> T __shfl_xor_sync(unsigned, T value, int step) {
    static T slot[MOST];
    Barrier& mine = warp[threadIdx.x / 32];
    slot[threadIdx.x] = value;
    wait(mine);
    T other = slot[threadIdx.x ^ step];
    wait(mine);
    return other;
}

static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

static void __threadfence() {}

static unsigned atomicInc(unsigned* place, unsigned most) {
    unsigned before = *place;
    *place = before >= most ? 0 : before + 1;
    return before;
}

static int atomicAdd(int* place, int value) { return (*place += value) - value; }

static float __fmul_rn(float a, float b) { return a * b; }

static int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }

template <class T> T __ldcg(const T* place) { return *place; }

static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// cvt.rna.tf32.f32 and mma.sync.m16n8k8 as defined in the PTX ISA
static unsigned to_tf32(float x) { return (__float_as_uint(x) + 0x1000) & ~0x1fffu; }

static void multiply_add(float c[4], const unsigned a[4], const unsigned b[2]) {
    static unsigned left[MOST][4], right[MOST][2];
    int lane = threadIdx.x % 32, first = threadIdx.x - lane, g = lane / 4, t = lane % 4;
    memcpy(left[threadIdx.x], a, 16), memcpy(right[threadIdx.x], b, 8);
    wait(warp[threadIdx.x / 32]);
    for (int i = 0; i < 4; i++) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        for (int k = 0; k < 8; k++) {
            unsigned x = left[first + row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
            unsigned y = right[first + column * 4 + k % 4][k / 4];
            c[i] += __uint_as_float(x) * __uint_as_float(y);
        }
    }
    wait(warp[threadIdx.x / 32]);
}

extern "C" { unsigned stride = 1; } // a large prime number mixes the order of the blocks
static void (*kernel)(void**);
static void** arguments;

static void run_thread() {
    kernel(arguments);
    ended[threadIdx.x] = true; // the scheduler follows, by uc_link
}

static void run(void (*fn)(void**), int grid_x, int grid_y, int threads, void** args) {
    kernel = fn, arguments = args, gridDim = {unsigned(grid_x), unsigned(grid_y)}, blockDim = {unsigned(threads), 1};
    for (unsigned i = 0, count = gridDim.x * gridDim.y; i < count; i++) {
        unsigned b = (unsigned long long)i * stride % count;
        blockIdx = {b % gridDim.x, b / gridDim.x};
        block = {0, threads, 0};
        for (int w = 0; w < threads / 32; w++) warp[w] = {0, 32, 0};
        for (int t = 0; t < threads; t++) {
            getcontext(&thread[t]);
            thread[t].uc_stack = {stack[t], 0, STACK}, thread[t].uc_link = &scheduler, ended[t] = false;
            makecontext(&thread[t], run_thread, 0);
        }
        for (int left = threads; left > 0;) {
            for (int t = 0; t < threads; t++) {
                if (ended[t]) continue;
                threadIdx = {unsigned(t), 0};
                swapcontext(&scheduler, &thread[t]);
                left -= ended[t];
            }
        }
    }
}
