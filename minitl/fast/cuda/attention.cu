// --- attention over few tokens: a block for each head of each sample, B HEADS in all ---
//
// TOKENS <= 64 (32 in double) and HEAD <= 64 numbers of a head fit in shared memory, so scores never go to global
// memory. The threads of a block form a grid of 16 x 16, and each computes up to 4 x 4 numbers of a product, so each
// number read from shared memory is used up to four times. What is computed beyond the last token or column is not
// stored, and no result depends on it.

#define TILES(n) ((n + 15) / 16) // rows or columns per thread
#define TOKEN(i) int(threadIdx.x / 16 * TILES(TOKENS) + i) // the i-th row of this thread, whose rows are adjacent
#define COLUMN(j) int(threadIdx.x % 16 + 16 * j) // the j-th column; neighboring threads have neighboring columns
#define PITCH 68 // of rows in a buffer: 64, and 4 more against bank conflicts along columns
#define BUFFER (64 * PITCH * 4 / sizeof(real))
#define WIDTH (HEADS * HEAD)
#define SCALE (1 / sqrt(real(HEAD)))

// x[r, c] = start[r row + c column]
struct Matrix {
    const real* start;
    int row, column;
};
__device__ Matrix plain(const real* x) { return {x, PITCH, 1}; }
__device__ Matrix transposed(const real* x) { return {x, 1, PITCH}; }

#ifndef EMULATED
// A float rounded to the 10 bits of mantissa of TF32
__device__ unsigned to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// c += a b    (16, 8) (8, 8) by a warp on a tensor core. With g = LANE / 4 and t = LANE % 4 a thread holds
// a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);  b: (t, g), (t + 4, g);  c: (g, 2t), (g, 2t + 1), and 8 rows below
__device__ void multiply_add(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Z = x y on tensor cores; TOKENS is a multiple of 16, columns and depth are multiples of 8; Z may be x or y
// A warp computes tiles of 16 rows and 8 columns. The order of summation within 8 numbers of the depth is free, so the
// two numbers of a thread are neighbors
__device__ void multiply_in_tiles(real* Z, Matrix x, Matrix y, int columns, int depth) {
    const int down = TF32 ? TOKENS / 16 : 1, step = 8 / down; // warps along the rows, and along the columns
    const int most = (columns / 8 + step - 1) / step; // tiles per warp
    const int g = LANE / 4, t = LANE % 4, row = WARP % down * 16 + g;
    bool busy = WARP < step * down;
    float c[4][4];
    for (int j = 0; j < most; j++)
        for (int i = 0; i < 4; i++) c[j][i] = 0;
    for (int k = 2 * t; k < depth && busy; k += 8) {
        unsigned a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = to_tf32(x.start[(row + i % 2 * 8) * x.row + (k + i / 2) * x.column]);
        for (int j = 0; j < most; j++) {
            int column = (WARP / down + j * step) * 8 + g;
            if (column - g >= columns) break;
            for (int i = 0; i < 2; i++) b[i] = to_tf32(y.start[(k + i) * y.row + column * y.column]);
            multiply_add(c[j], a, b);
        }
    }
    __syncthreads(); // all threads have read x and y
    for (int j = 0; j < most; j++) {
        int column = (WARP / down + j * step) * 8;
        if (column >= columns || !busy) break;
        for (int i = 0; i < 4; i++) Z[(row + i / 2 * 8) * PITCH + column + 2 * t + i % 2] = c[j][i];
    }
    __syncthreads();
}

// z = x y    (TOKENS, depth) (depth, columns); if TF32, on tensor cores, through the buffer Z, which may be x or y
__device__ void multiply(real z[4][4], Matrix x, Matrix y, int columns, int depth, real* Z) {
    for (int i = 0; i < TILES(TOKENS); i++)
        for (int j = 0; j < TILES(columns); j++) z[i][j] = 0;
    if (TF32) multiply_in_tiles(Z, x, y, columns, depth);
#pragma unroll 4
    for (int k = 0; k < (TF32 ? 0 : depth); k++) {
        real left[4], right[4];
        for (int i = 0; i < TILES(TOKENS); i++) left[i] = x.start[TOKEN(i) * x.row + k * x.column];
        for (int j = 0; j < TILES(columns); j++) right[j] = y.start[k * y.row + COLUMN(j) * y.column];
        for (int i = 0; i < TILES(TOKENS); i++)
            for (int j = 0; j < TILES(columns); j++) z[i][j] += left[i] * right[j];
    }
    for (int i = 0; i < (TF32 ? TILES(TOKENS) : 0); i++)
        for (int j = 0; j < TILES(columns); j++) z[i][j] = Z[TOKEN(i) * PITCH + COLUMN(j)];
}

// X[n, c] = x[n, c] + b[c]    rows of x at a distance of `step`; b may be null
// Surplus threads load the last number again: without a branch, eight loads are in flight at the same time
__device__ void load(real* X, const stored* x, int step, const real* b) {
#pragma unroll 8
    for (int first = 0; first < TOKENS * HEAD; first += 256) {
        int i = min(first + int(threadIdx.x), TOKENS * HEAD - 1), n = i / HEAD, c = i % HEAD;
        X[n * PITCH + c] = x[n * step + c] + (b ? b[c] : 0);
    }
}

// X = q, k or v, the parts 0, 1 and 2 of qkv    qkv and b (may be null) start at the head
__device__ void load_part(real* X, int part, const stored* qkv, const real* b) {
    load(X, qkv + part * WIDTH, 3 * WIDTH, b ? b + part * WIDTH : b);
}

// y[n, c] = z[n, c]    rows of y at a distance of `step`;  sums[c] = sum of z[n, c] over n; sums may be null
__device__ void store(stored* y, int step, real* sums, real z[4][4]) {
    for (int j = 0; j < TILES(HEAD); j++) {
        int c = COLUMN(j);
        real sum = 0;
        for (int i = 0; i < TILES(TOKENS); i++) {
            if (TOKEN(i) >= TOKENS || c >= HEAD) continue;
            y[TOKEN(i) * step + c] = z[i][j];
            sum += z[i][j];
        }
        if (!sums) continue;
        sum = sum_of_column(sum + __shfl_xor_sync(0xffffffff, sum, 16));
        if (threadIdx.x < 16 && c < HEAD) sums[c] = sum;
    }
}

// A = softmax of q kT / sqrt(HEAD) over each row;  leaves X = q and Y = k
__device__ void weights(real A[4][4], real* X, real* Y, const stored* qkv, const real* b) {
    load_part(X, 0, qkv, b);
    load_part(Y, 1, qkv, b);
    __syncthreads();
    multiply(A, plain(X), transposed(Y), TOKENS, HEAD, X);
    for (int i = 0; i < TILES(TOKENS); i++) {
        real top = -INFINITY, sum = 0;
        for (int j = 0; j < TILES(TOKENS); j++)
            if (COLUMN(j) < TOKENS && A[i][j] > top) top = A[i][j];
        top = warp_max(top, 16);
        for (int j = 0; j < TILES(TOKENS); j++) {
            A[i][j] = COLUMN(j) < TOKENS ? exp((A[i][j] - top) * SCALE) : 0;
            sum += A[i][j];
        }
        sum = 1 / warp_sum(sum, 16);
        for (int j = 0; j < TILES(TOKENS); j++) A[i][j] *= sum;
    }
}

// The mask of this block, a bit for each weight (see keep_bits); its first bit may lie inside a byte
__device__ void draw(unsigned char* keep, const u64* key, real p) {
    u64 first = u64(blockIdx.x) * (TOKENS * TOKENS), end = first + TOKENS * TOKENS;
    for (u64 i = first / 8 + threadIdx.x; 8 * i < end; i += blockDim.x) keep[i - first / 8] = keep_bits(i, key[0], p);
}

// m[n, j] = 0 or scale
__device__ real mask(const unsigned char* keep, int n, int j, real scale) {
    int bit = u64(blockIdx.x) * (TOKENS * TOKENS) % 8 + n * TOKENS + j;
    return keep[bit / 8] >> bit % 8 & 1 ? scale : 0;
}

// y = (m A) v,  A = softmax of (q kT / sqrt(HEAD)) over each row,  (q, k, v) = qkv + b
// y (B, TOKENS, HEADS HEAD), qkv (B, TOKENS, 3 HEADS HEAD), b (3 HEADS HEAD) or null
// m is the mask of `dropout` over all A (B, HEADS, TOKENS, TOKENS), or 1 if the key is null
KERNEL attention(stored* y, const stored* qkv, const real* b, const u64* key, real p, real scale) {
    alignas(16) __shared__ real X[BUFFER], Y[BUFFER];
    __shared__ unsigned char keep[64 * 64 / 8 + 1];
    int sample = blockIdx.x / HEADS, at = blockIdx.x % HEADS * HEAD;
    y += sample * TOKENS * WIDTH + at, qkv += sample * TOKENS * 3 * WIDTH + at, b = b ? b + at : b;
    real A[4][4], z[4][4];
    weights(A, X, Y, qkv, b);
    if (key) draw(keep, key, p);
    __syncthreads();
    for (int i = 0; i < TILES(TOKENS); i++)
        for (int j = 0; j < TILES(TOKENS); j++)
            X[TOKEN(i) * PITCH + COLUMN(j)] = key ? A[i][j] * mask(keep, TOKEN(i), COLUMN(j), scale) : A[i][j];
    load_part(Y, 2, qkv, b);
    __syncthreads();
    multiply(z, plain(X), plain(Y), HEAD, TOKENS, X);
    store(y, WIDTH, 0, z);
}

// dv = (m A)T dy,  dA = m (dy vT),  dS = A (dA - sum_j dA A),  dq = dS k / sqrt(HEAD),  dk = dST q / sqrt(HEAD)
// sums (B, 3 HEADS HEAD) = sum of dqkv over the tokens of each sample, or null; A is computed again
KERNEL attention_dx(stored* dqkv, real* sums, const stored* dy, const stored* qkv, const real* b, const u64* key,
                    real p, real scale) {
    alignas(16) __shared__ real X[BUFFER], Y[BUFFER];
    __shared__ unsigned char keep[64 * 64 / 8 + 1];
    int sample = blockIdx.x / HEADS, at = blockIdx.x % HEADS * HEAD;
    dy += sample * TOKENS * WIDTH + at, qkv += sample * TOKENS * 3 * WIDTH + at, b = b ? b + at : b;
    dqkv += sample * TOKENS * 3 * WIDTH + at, sums = sums ? sums + sample * 3 * WIDTH + at : sums;
    real A[4][4], dS[4][4], z[4][4];
    weights(A, X, Y, qkv, b);
    if (key) draw(keep, key, p);
    __syncthreads();
    load(X, dy, WIDTH, 0);
    load_part(Y, 2, qkv, b);
    __syncthreads();
    multiply(dS, plain(X), transposed(Y), TOKENS, HEAD, Y);
    __syncthreads();
    for (int i = 0; i < TILES(TOKENS); i++) {
        real dot = 0;
        for (int j = 0; j < TILES(TOKENS); j++) {
            real m = key ? mask(keep, TOKEN(i), COLUMN(j), scale) : 1;
            Y[TOKEN(i) * PITCH + COLUMN(j)] = m * A[i][j];
            dS[i][j] *= m; // dA
            if (COLUMN(j) < TOKENS) dot += dS[i][j] * A[i][j];
        }
        dot = warp_sum(dot, 16);
        for (int j = 0; j < TILES(TOKENS); j++) dS[i][j] = A[i][j] * (dS[i][j] - dot) * SCALE;
    }
    __syncthreads();
    multiply(z, transposed(Y), plain(X), HEAD, TOKENS, X);
    store(dqkv + 2 * WIDTH, 3 * WIDTH, sums ? sums + 2 * WIDTH : sums, z);
    __syncthreads();
    for (int i = 0; i < TILES(TOKENS); i++)
        for (int j = 0; j < TILES(TOKENS); j++) X[TOKEN(i) * PITCH + COLUMN(j)] = dS[i][j];
    load_part(Y, 1, qkv, b);
    __syncthreads();
    multiply(z, plain(X), plain(Y), HEAD, TOKENS, Y);
    store(dqkv, 3 * WIDTH, sums, z);
    __syncthreads();
    load_part(Y, 0, qkv, b);
    __syncthreads();
    multiply(z, transposed(X), plain(Y), HEAD, TOKENS, Y);
    store(dqkv + WIDTH, 3 * WIDTH, sums ? sums + WIDTH : sums, z);
}
