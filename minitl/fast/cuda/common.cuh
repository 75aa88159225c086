// What the kernels of all .cu files share; each file is compiled with this one in front. Each kernel has its formula
// above it, and a NumPy function of the same name and arguments in tests/cuda_reference.py that computes the same.
//
// `real` is float or double. `stored` is the type of activations in memory: real, or bf16, which becomes a float when it
// is read. Names in capitals that are not defined here are sizes known when the file is compiled. Arrays are contiguous
// and row-major; results come first, then inputs, then sizes and options. Pointers that may be null are marked as such.
//
// Work is shared in two ways. Where each number stands alone, a thread computes one number. Where a whole row is needed
// (a mean, a maximum), a warp computes one row: 32 threads that run in step and add up across their registers, so
// neighbors read neighboring numbers and nothing has to wait for other warps. Sums over rows go down the columns in a
// fixed order: no number is added atomically, so the same input gives the same bits. Only blocks are counted atomically,
// so that the last one to finish knows that it is the last, and adds up the results of all.

#define KERNEL extern "C" __global__ void
#ifndef INFINITY // the run-time compiler has no math.h
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif
typedef unsigned long long u64;

// The upper half of a float: 8 bits of exponent, 7 of mantissa; rounded to nearest, ties to even, and NaN stays NaN
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

// The sum, and the maximum, of x over the 32 threads of a warp, or over each `width` neighbors of them
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

// --- sums down the columns: a block has 32 columns, a strip, and 8 parts of `chunk` rows ---

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

// True for the last of `count` blocks to arrive at this ticket; it sees what all have written
// A ticket is 0 before and after a kernel: atomicInc goes from count - 1 to 0
__device__ bool last_of(unsigned* ticket, int count) {
    __shared__ bool last;
    __syncthreads(); // until all threads of this block have written
    if (threadIdx.x == 0) {
        __threadfence(); // other blocks see what was written before the ticket is taken,
        last = atomicInc(ticket, count - 1) == count - 1;
        __threadfence(); // and nothing is read before it
    }
    __syncthreads();
    return last;
}

// The sum of parts[k, c] over the chunks k, in order whichever block is last; 0 for a column that is not `inside`
// Reads bypass the cache of this processor, which does not see the writes of others
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

// Four random words from a counter and a key: Philox4x64-10 (Salmon et al., 2011), the generator of numpy.random.Philox.
// Each round multiplies two of the four words to 128 bits and crosses the halves with the other two and with the key.
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

// A bit for each of the 8 numbers that one counter has bits for, from number 8 i of a mask on: 1 if it is kept, which
// has the probability 1 - p. NumPy counts from 1
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

