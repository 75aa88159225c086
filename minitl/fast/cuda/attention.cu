// --- attention over few tokens: a block for each head of each sample, B HEADS in all ---
//
// TOKENS <= 64 (32 in double) and HEAD <= 64 numbers of a head fit in shared memory, so the scores never go to global
// memory. The threads of a block form 16 x 16 tiles, and each computes up to 4 x 4 numbers of a product: it uses each
// number that it reads four times, so that it multiplies most of the time. What threads compute for tokens and columns
// that do not exist is not stored, and no result depends on it.

#define TILES(n) ((n + 15) / 16) // rows or columns of each thread
#define TOKEN(i) int(threadIdx.x / 16 * TILES(TOKENS) + i) // its i-th row: all are neighbors, and read together
#define COLUMN(j) int(threadIdx.x % 16 + 16 * j) // its j-th column: neighboring threads have neighboring columns
#define PITCH 68 // from row to row of a buffer: 64, and 4 more to spread each column over the banks
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

// z = x y    (TOKENS, depth) (depth, columns)
__device__ void multiply(real z[4][4], Matrix x, Matrix y, int columns, int depth) {
    for (int i = 0; i < TILES(TOKENS); i++)
        for (int j = 0; j < TILES(columns); j++) z[i][j] = 0;
#pragma unroll 4
    for (int k = 0; k < depth; k++) {
        real left[4], right[4];
        for (int i = 0; i < TILES(TOKENS); i++) left[i] = x.start[TOKEN(i) * x.row + k * x.column];
        for (int j = 0; j < TILES(columns); j++) right[j] = y.start[k * y.row + COLUMN(j) * y.column];
        for (int i = 0; i < TILES(TOKENS); i++)
            for (int j = 0; j < TILES(columns); j++) z[i][j] += left[i] * right[j];
    }
}

// X[n, c] = x[n, c] + b[c]    rows of x at a distance of `step`; b may be null
// Surplus threads repeat the last number: without a branch, eight loads wait for memory at the same time
__device__ void load(real* X, const stored* x, int step, const real* b) {
#pragma unroll 8
    for (int first = 0; first < TOKENS * HEAD; first += 256) {
        int i = min(first + int(threadIdx.x), TOKENS * HEAD - 1), n = i / HEAD, c = i % HEAD;
        X[n * PITCH + c] = x[n * step + c] + (b ? b[c] : 0);
    }
}

// X = q, k or v, which are part 0, 1 and 2    qkv and b (may be null) begin at the head
__device__ void load_part(real* X, int part, const stored* qkv, const real* b) {
    load(X, qkv + part * WIDTH, 3 * WIDTH, b ? b + part * WIDTH : b);
}

// y[n, c] = z[n, c]    rows of y at a distance of `step`;  sums[c] = sum of z[n, c] over n, unless it is null
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

// A = softmax of q kT / sqrt(HEAD) over each row;  X = q and Y = k are filled for it
__device__ void weights(real A[4][4], real* X, real* Y, const stored* qkv, const real* b) {
    load_part(X, 0, qkv, b);
    load_part(Y, 1, qkv, b);
    __syncthreads();
    multiply(A, plain(X), transposed(Y), TOKENS, HEAD);
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

// The mask of this block, a bit for each weight: see keep_bits. It begins anywhere within the 8 numbers of a counter
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
    multiply(z, plain(X), plain(Y), HEAD, TOKENS);
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
    multiply(dS, plain(X), transposed(Y), TOKENS, HEAD);
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
    multiply(z, transposed(Y), plain(X), HEAD, TOKENS);
    store(dqkv + 2 * WIDTH, 3 * WIDTH, sums ? sums + 2 * WIDTH : sums, z);
    __syncthreads();
    for (int i = 0; i < TILES(TOKENS); i++)
        for (int j = 0; j < TILES(TOKENS); j++) X[TOKEN(i) * PITCH + COLUMN(j)] = dS[i][j];
    load_part(Y, 1, qkv, b);
    __syncthreads();
    multiply(z, plain(X), plain(Y), HEAD, TOKENS);
    store(dqkv, 3 * WIDTH, sums, z);
    __syncthreads();
    load_part(Y, 0, qkv, b);
    __syncthreads();
    multiply(z, transposed(X), plain(Y), HEAD, TOKENS);
    store(dqkv + WIDTH, 3 * WIDTH, sums ? sums + WIDTH : sums, z);
}
