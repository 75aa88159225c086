// Shared by the kernels of all .cu files: each file is compiled with this one prepended. Each kernel has its formula
// above it, and a NumPy reference with the same name and arguments in tests/cuda_reference.py.
//
// `real`, the type of arithmetic, is float or double. `stored`, the type of activations in memory, is real, or bf16,
// which is converted to float when read. Names in capitals without a definition are sizes, given as macros. Arrays are
// contiguous and row-major. Results come first, then inputs, then sizes and options. What may be null is noted.
//
// Elementwise kernels use a thread for each number. Kernels that need whole rows (a mean, a maximum) use a warp for a
// row: its 32 threads read neighboring numbers, exchange results through registers and never wait for other warps. Sums
// over rows go down the columns in a fixed order. Floats are never added atomically, so the same input gives the same
// bits; only finished blocks are counted atomically, and the last one adds up the results of all.

#define KERNEL extern "C" __global__ void
#ifndef INFINITY // the run-time compiler has no math.h
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif
typedef unsigned long long u64;

// bfloat16, the upper half of a float: 8 bits of exponent, 7 of mantissa. Rounds to nearest even; NaN stays NaN
struct bf16 {
    unsigned short bits;
    __device__ bf16(float x) {
        unsigned all = __float_as_uint(x);
        bool nan = (all & 0x7fffffff) > 0x7f800000;
        bits = (nan ? all | 0x400000 : all + 0x7fff + (all >> 16 & 1)) >> 16;
    }
    __device__ operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)
#define LANE (threadIdx.x % 32)
#define WARP (threadIdx.x / 32)
#define ROW (blockIdx.x * (blockDim.x / 32) + WARP)

// The sum and the maximum of x over the 32 threads of a warp, or over each group of `width` neighboring threads
__device__ real warp_sum(real x, int width = 32) {
    for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

__device__ real warp_max(real x, int width = 32) {
    for (int step = width / 2; step > 0; step /= 2) {
        real other = __shfl_xor_sync(0xffffffff, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// --- sums down the columns: a block sums 32 columns (a strip) of `chunk` rows, of which each warp takes an eighth ---

// The sum of x over the 8 threads of a column
__device__ real sum_of_column(real x) {
    __shared__ real tile[8][32];
    tile[WARP][LANE] = x;
    __syncthreads();
    real sum = 0;
    for (int part = 0; part < 8; part++) sum += tile[part][LANE];
    __syncthreads();
    return sum;
}

// True in the last of `count` blocks that call this with the same ticket; that block sees what all have written
// A ticket is 0 before and after each kernel: atomicInc wraps from count - 1 to 0
__device__ bool last_of(unsigned* ticket, int count) {
    __shared__ bool last;
    __syncthreads(); // all threads of this block have written
    if (threadIdx.x == 0) {
        __threadfence(); // what was written is visible to other blocks before the ticket is taken,
        last = atomicInc(ticket, count - 1) == count - 1;
        __threadfence(); // and nothing is read before it
    }
    __syncthreads();
    return last;
}

// The sum of parts[k, c] over the chunks k, in the same order whichever block is last; 0 for a column not `inside`
// __ldcg bypasses the L1 cache, which may not have the writes of other multiprocessors
__device__ real sum_of_parts(const real* parts, int width, int c, bool inside) {
    real sum = 0;
    for (int k = WARP; k < gridDim.y && inside; k += 8) sum += __ldcg(parts + k * width + c);
    return sum_of_column(sum);
}

// sums[s, c] = the sum of own[s] over the threads of column c, in all blocks of the strip, for s < count
// sums (count, columns), parts (chunks, count, columns); parts and tickets may be null if there is one chunk
__device__ void add_columns(real* sums, real* parts, unsigned* tickets, const real* own, int count,
                            int columns) {
    int c = blockIdx.x * 32 + LANE, width = count * columns;
    bool one = gridDim.y == 1, writes = WARP == 0 && c < columns;
    real* place = one ? sums : parts + blockIdx.y * width;
    for (int s = 0; s < count; s++) {
        real sum = sum_of_column(own[s]);
        if (writes) place[s * columns + c] = sum;
    }
    if (one || !last_of(tickets + blockIdx.x, gridDim.y)) return;
    for (int s = 0; s < count; s++) {
        real sum = sum_of_parts(parts, width, s * columns + c, c < columns);
        if (writes) sums[s * columns + c] = sum;
    }
}

// The sum of x over the threads of a block
__device__ real sum_of_block(real x) {
    __shared__ real tile[8];
    x = warp_sum(x);
    if (LANE == 0) tile[WARP] = x;
    __syncthreads();
    x = 0;
    for (int warp = 0; warp < 8; warp++) x += tile[warp];
    __syncthreads();
    return x;
}

// --- random masks ---

// Four random words from a counter and a key: Philox4x64-10 (Salmon et al., 2011), as in numpy.random.Philox.
// Each round multiplies two of the four words to 128 bits, and XORs the upper halves with the other two and the key.
__device__ void philox(u64 counter, u64 key, u64 word[4]) {
    u64 key1 = 0;
    word[0] = counter, word[1] = word[2] = word[3] = 0;
    for (int round = 0; round < 10; round++) {
        u64 high0 = __umul64hi(0xD2E7470EE14C6C93ull, word[0]), low0 = 0xD2E7470EE14C6C93ull * word[0];
        u64 high1 = __umul64hi(0xCA5A826395121157ull, word[2]), low1 = 0xCA5A826395121157ull * word[2];
        word[0] = high1 ^ word[1] ^ key, word[1] = low1;
        word[2] = high0 ^ word[3] ^ key1, word[3] = low0;
        key += 0x9E3779B97F4A7C15ull, key1 += 0xBB67AE8584CAA73Bull;
    }
}

// Bits of the numbers 8 i to 8 i + 7 of a mask, which share a counter: 1, with probability 1 - p, for a number to keep
// NumPy's counter starts at 1
__device__ unsigned keep_bits(u64 i, u64 key, real p) {
    u64 word[4];
    philox(1 + i, key, word);
    unsigned keep = 0;
    for (int j = 0; j < 8; j++) {
        unsigned bits = word[j / 2] >> (32 * (j % 2));
        float uniform = (bits >> 8) * (1.0f / 16777216);
        keep |= unsigned(uniform >= (float)p) << j;
    }
    return keep;
}

