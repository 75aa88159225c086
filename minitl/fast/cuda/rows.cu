// Layer norm: a warp computes a row of COLUMNS numbers; lane l keeps the columns l, l + 32, ... in registers.

#define OWN ((COLUMNS + 31) / 32) // columns of each lane
#define FOR_OWN(k, c) _Pragma("unroll") for (int k = 0, c = LANE; k < OWN; k++, c += 32) if (c < COLUMNS)
#define GROUP 16 // blocks whose sums are added up before those of all groups

// y = n weight + bias,  n = (x - mean) inv_std,  inv_std = 1 / sqrt(var x + eps)    over each row of x (rows, COLUMNS)
KERNEL layer_norm(stored* y, real* mean, real* inv_std, const real* x, const real* weight, const real* bias, int rows,
                  real eps) {
    int row = ROW;
    if (row >= rows) return;
    x += row * COLUMNS, y += row * COLUMNS;
    real own[OWN], sum = 0, squares = 0;
    FOR_OWN(k, c) own[k] = x[c], sum += own[k];
    real mu = warp_sum(sum) / COLUMNS;
    FOR_OWN(k, c) own[k] -= mu, squares += own[k] * own[k];
    real inv = 1 / sqrt(warp_sum(squares) / COLUMNS + eps);
    FOR_OWN(k, c) y[c] = own[k] * inv * weight[c] + bias[c];
    if (LANE == 0) mean[row] = mu, inv_std[row] = inv;
}

// total[c] = sum of parts[k step, c] over k < count, for c < width, by one block; total may be parts[0]
__device__ void add_up(real* total, const real* parts, int count, int step, int width) {
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        real sum = 0;
        for (int k = 0; k < count; k++) sum += __ldcg(parts + k * step * width + c);
        total[c] = sum;
    }
}

// dx = inv_std (g - mean g - n mean(g n)) + accumulated,  g = dy weight    accumulated: gradients of x from other ops
// sums (3 COLUMNS) = sums of dy n, dy and dx over the rows: dweight, dbias, and dbias of the layer that computed x
// accumulated, and dx_bf16, a copy of dx, may be null; parts (blocks, 3 COLUMNS) is scratch
KERNEL layer_norm_dx(real* dx, stored* dx_bf16, real* sums, real* parts, unsigned* tickets, const stored* dy,
                     const real* x, const real* accumulated, const real* weight, const real* mean, const real* inv_std,
                     int rows) {
    real dweight[OWN], dbias[OWN], total[OWN];
    FOR_OWN(k, c) dweight[k] = dbias[k] = total[k] = 0;
    for (int row = ROW; row < rows; row += 8 * gridDim.x) {
        real mu = mean[row], inv = inv_std[row], sum = 0, dot = 0, n[OWN], g[OWN];
        FOR_OWN(k, c) {
            real d = dy[row * COLUMNS + c];
            n[k] = (x[row * COLUMNS + c] - mu) * inv, g[k] = d * weight[c];
            dweight[k] += d * n[k], dbias[k] += d;
            sum += g[k], dot += g[k] * n[k];
        }
        sum = warp_sum(sum) / COLUMNS, dot = warp_sum(dot) / COLUMNS;
        FOR_OWN(k, c) {
            real d = inv * (g[k] - sum - n[k] * dot);
            if (accumulated) d += accumulated[row * COLUMNS + c];
            dx[row * COLUMNS + c] = d, total[k] += d;
            if (dx_bf16) dx_bf16[row * COLUMNS + c] = d;
        }
    }
    real* own = parts + blockIdx.x * 3 * COLUMNS;
#pragma unroll
    for (int k = 0; k < OWN; k++) { // by all threads, because sum_of_column synchronizes them
        int c = LANE + 32 * k;
        bool inside = c < COLUMNS;
        real a = sum_of_column(inside ? dweight[k] : 0), b = sum_of_column(inside ? dbias[k] : 0);
        real d = sum_of_column(inside ? total[k] : 0);
        if (WARP == 0 && inside) own[c] = a, own[COLUMNS + c] = b, own[2 * COLUMNS + c] = d;
    }
    int first = blockIdx.x / GROUP * GROUP, groups = (gridDim.x + GROUP - 1) / GROUP;
    int members = min(GROUP, (int)gridDim.x - first);
    if (!last_of(tickets + 1 + first / GROUP, members)) return;
    add_up(parts + first * 3 * COLUMNS, parts + first * 3 * COLUMNS, members, 1, 3 * COLUMNS);
    if (last_of(tickets, groups)) add_up(sums, parts, groups, GROUP, 3 * COLUMNS);
}
