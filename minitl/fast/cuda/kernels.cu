// --- sums down the columns ---

// sums[c] = sum of x[r, c] over the rows, or with a mean (C) of (x[r, c] - mean_c)^2
// parts[k, c] = the same over the rows r of chunk k
// x (rows, C), parts (chunks, C), mean may be null; parts and tickets may be null if there is one chunk
KERNEL column_sums(real* sums, real* parts, unsigned* tickets, const stored* x, const real* mean, int rows, int C,
                   int chunk) {
    int c = blockIdx.x * 32 + LANE, first = blockIdx.y * chunk, last = min(first + chunk, rows);
    bool inside = c < C;
    real sum = 0, mu = mean && inside ? mean[c] : 0;
    for (int r = first + WARP; r < last && inside; r += 8) {
        real d = x[r * C + c] - mu;
        sum += mean ? d * d : d;
    }
    add_columns(sums, parts, tickets, &sum, 1, C);
}

// dweight[c] = sum of dy n,  dbias[c] = sum of dy,  n = (x - mean) inv_std    over the rows of dy and x (rows, C)
// sums (2C) = (dweight, dbias), parts (chunks, 2C)
KERNEL norm_columns(real* sums, real* parts, unsigned* tickets, const real* dy, const real* x, const real* mean,
                    const real* inv_std, int rows, int C, int chunk) {
    int c = blockIdx.x * 32 + LANE, first = blockIdx.y * chunk, last = min(first + chunk, rows);
    real own[2] = {0, 0};
    for (int r = first + WARP; r < last && c < C; r += 8) {
        real d = dy[r * C + c];
        own[0] += d * (x[r * C + c] - mean[c]) * inv_std[c];
        own[1] += d;
    }
    add_columns(sums, parts, tickets, own, 2, C);
}

// --- batch norm: one mean and inv_std for each column of x (rows, C) ---

// inv_std = 1 / sqrt(v / rows + eps),  v = sum of (x - mean)^2    over the rows of x
// running_mean <- (1 - momentum) running_mean + momentum mean, and running_var likewise with v / (rows - 1)
KERNEL batch_statistics(real* inv_std, real* running_mean, real* running_var, const real* mean, const real* v,
                        int rows, int C, real momentum, real eps) {
    int c = THREAD;
    if (c >= C) return;
    inv_std[c] = 1 / sqrt(v[c] / rows + eps);
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c];
    running_var[c] = (1 - momentum) * running_var[c] + momentum * (v[c] / (rows - 1));
}

// y = n weight + bias,  n = (x - mean) inv_std
KERNEL batch_norm(real* y, const real* x, const real* mean, const real* inv_std, const real* weight, const real* bias,
                  int rows, int C) {
    int i = THREAD, c = i % C;
    if (i >= rows * C) return;
    y[i] = (x[i] - mean[c]) * inv_std[c] * weight[c] + bias[c];
}

// dx = (dy - dbias / rows - n dweight / rows) weight inv_std    sums = (dweight, dbias), see norm_columns
KERNEL batch_norm_dx(real* dx, const real* dy, const real* x, const real* mean, const real* inv_std, const real* weight,
                     const real* sums, int rows, int C) {
    int i = THREAD, c = i % C;
    if (i >= rows * C) return;
    real n = (x[i] - mean[c]) * inv_std[c];
    dx[i] = (dy[i] - (sums[C + c] + n * sums[c]) / rows) * weight[c] * inv_std[c];
}

// --- softmax and activation ---

// y_i = exp(x_i - max x) / sum_j exp(x_j - max x)    over each row of x (rows, n); y may be x
KERNEL softmax(real* y, const real* x, int rows, int n) {
    int row = ROW;
    if (row >= rows) return;
    x += row * n, y += row * n;
    real top = -INFINITY, sum = 0;
    for (int i = LANE; i < n; i += 32) top = x[i] > top ? x[i] : top;
    top = warp_max(top);
    for (int i = LANE; i < n; i += 32) {
        real e = exp(x[i] - top);
        y[i] = e;
        sum += e;
    }
    sum = warp_sum(sum);
    for (int i = LANE; i < n; i += 32) y[i] /= sum;
}

// dx_i = y_i (dy_i - sum_j dy_j y_j)    dx may be dy
KERNEL softmax_dx(real* dx, const real* dy, const real* y, int rows, int n) {
    int row = ROW;
    if (row >= rows) return;
    y += row * n, dy += row * n, dx += row * n;
    real dot = 0;
    for (int i = LANE; i < n; i += 32) dot += dy[i] * y[i];
    dot = warp_sum(dot);
    for (int i = LANE; i < n; i += 32) dx[i] = y[i] * (dy[i] - dot);
}

// y = max(x, 0)    NaN stays NaN
KERNEL relu(stored* y, const stored* x, int n) {
    int i = THREAD;
    if (i >= n) return;
    real value = x[i];
    y[i] = value < 0 ? 0 : value;
}

// dx = dy where y > 0, and 0 elsewhere
KERNEL relu_dx(stored* dx, const stored* dy, const stored* y, int n) {
    int i = THREAD;
    if (i >= n) return;
    real value = dy[i];
    dx[i] = y[i] > 0 ? value : 0;
}

// F(x) = (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, or exact: (1 + erf(x / sqrt 2)) / 2
__device__ real gelu_of(real x, bool exact) {
    const real c = 0.7978845608028654, k = 0.044715, half = 0.5, root = 0.7071067811865476;
    return x * half * (1 + (exact ? erf(x * root) : tanh(c * x * (1 + k * x * x))));
}

// F(x) + x F'(x)    with F' = (1 - t^2) c (1 + 3 k x^2) / 2, or exact: exp(-x^2 / 2) / sqrt(2 pi)
__device__ real gelu_slope(real x, bool exact) {
    const real c = 0.7978845608028654, k = 0.044715, half = 0.5, root = 0.7071067811865476, top = 0.3989422804014327;
    if (exact) return half * (1 + erf(x * root)) + x * top * exp(-half * x * x);
    real t = tanh(c * x * (1 + k * x * x));
    return half * (1 + t + x * (1 - t * t) * c * (1 + 3 * k * x * x));
}

// y = x F(x)
KERNEL gelu(stored* y, const stored* x, int n, int exact) {
    int i = THREAD;
    if (i < n) y[i] = gelu_of(x[i], exact);
}

// dx = (F(x) + x F'(x)) dy
KERNEL gelu_dx(stored* dx, const stored* dy, const stored* x, int n, int exact) {
    int i = THREAD;
    if (i < n) dx[i] = dy[i] * gelu_slope(x[i], exact);
}

// y = GELU(x + b)    for each row of x (rows, C), by a warp
KERNEL bias_gelu(stored* y, const stored* x, const real* b, int rows, int C) {
    int row = ROW;
    if (row >= rows) return;
    for (int c = LANE; c < C; c += 32) y[row * C + c] = gelu_of(x[row * C + c] + b[c], false);
}

// dx = (F(u) + u F'(u)) dy,  u = x + b,  db[c] = sum of dx[r, c] over the rows    parts (chunks, C), see column_sums
KERNEL bias_gelu_dx(real* db, real* parts, unsigned* tickets, stored* dx, const stored* dy, const stored* x,
                    const real* b, int rows, int C, int chunk) {
    int c = blockIdx.x * 32 + LANE, first = blockIdx.y * chunk, last = min(first + chunk, rows);
    real sum = 0;
    for (int r = first + WARP; r < last && c < C; r += 8) {
        real d = dy[r * C + c] * gelu_slope(x[r * C + c] + b[c], false);
        dx[r * C + c] = d;
        sum += d;
    }
    add_columns(db, parts, tickets, &sum, 1, C);
}

// --- vector attention: every channel is a head of its own; q, k, v, y (B, N, C), n = B N C numbers each ---

// y_ic = sum_j a_ijc v_jc,  a_ijc = exp(q_ic k_jc - lse_ic),  lse_ic = ln sum_j exp(q_ic k_jc)
KERNEL vector_attention(real* y, real* lse, const real* q, const real* k, const real* v, int n, int N, int C) {
    int i = THREAD, first = i / (N * C) * (N * C) + i % C;  // the first token's number of this sample and channel
    if (i >= n) return;
    real top = -INFINITY, total = 0, sum = 0;
    for (int j = first; j < first + N * C; j += C) top = q[i] * k[j] > top ? q[i] * k[j] : top;
    for (int j = first; j < first + N * C; j += C) {
        real e = exp(q[i] * k[j] - top);
        total += e;
        sum += e * v[j];
    }
    y[i] = sum / total;
    lse[i] = top + log(total);
}

// dq_ic = dy_ic sum_j a_ijc k_jc (v_jc - y_ic)
// dk_jc = sum_i a_ijc dy_ic q_ic (v_jc - y_ic),  dv_jc = sum_i a_ijc dy_ic
// A thread is token i of the first sum, and token j of the other two
KERNEL vector_attention_dx(real* dq, real* dk, real* dv, const real* dy, const real* q, const real* k, const real* v,
                           const real* y, const real* lse, int n, int N, int C) {
    int i = THREAD, first = i / (N * C) * (N * C) + i % C;
    if (i >= n) return;
    real to_q = 0, to_k = 0, to_v = 0;
    for (int j = first; j < first + N * C; j += C) {
        to_q += exp(q[i] * k[j] - lse[i]) * k[j] * (v[j] - y[i]);
        real share = exp(q[j] * k[i] - lse[j]) * dy[j];
        to_k += share * q[j] * (v[i] - y[j]);
        to_v += share;
    }
    dq[i] = dy[i] * to_q, dk[i] = to_k, dv[i] = to_v;
}

// --- bias and dropout ---

// y_i = m_(i / group) (x_i + b_(i mod C))    a bias, or drop path with one m per sample; y may be x
// b (C) or null, m (n / group) or null
KERNEL bias_drop_path(stored* y, const stored* x, const real* b, const real* m, int n, int C, int group) {
    int i = THREAD;
    if (i >= n) return;
    real value = x[i];
    if (b) value += b[i % C];
    if (m) value *= m[i / group];
    y[i] = value;
}

// z = x + m (y + b)    for each row of y and z (rows, C), by a warp; one m for each sample of `span` rows
// x (x_rows, C), repeated if x_rows < rows; b (C) or null, m (rows / span) or null
KERNEL residual(real* z, const real* x, const stored* y, const real* b, const real* m, int rows, int C, int x_rows,
                int span) {
    int row = ROW, x_row = row % x_rows;
    if (row >= rows) return;
    real keep = m ? m[row / span] : 1;
    for (int c = LANE; c < C; c += 32) {
        real bias = b ? b[c] : 0;
        z[row * C + c] = x[x_row * C + c] + keep * (y[row * C + c] + bias);
    }
}

// dy = m dz,  db[c] = sum of dy[r, c] over the rows    see column_sums
KERNEL residual_dx(real* db, real* parts, unsigned* tickets, stored* dy, const real* dz, const real* m, int span,
                   int rows, int C, int chunk) {
    int c = blockIdx.x * 32 + LANE, first = blockIdx.y * chunk, last = min(first + chunk, rows);
    real sum = 0;
    for (int r = first + WARP; r < last && c < C; r += 8) {
        real d = m[r / span] * dz[r * C + c];
        dy[r * C + c] = d;
        sum += d;
    }
    add_columns(db, parts, tickets, &sum, 1, C);
}

// y_i = m_i x_i,  m_i = 0 where the i-th float of Generator(Philox(key)) is below p, and `scale` elsewhere
// x (n) may be null, which stands for ones
KERNEL dropout(stored* y, const stored* x, const u64* key, real p, real scale, int n) {
    int thread = THREAD, first = 8 * thread;
    if (first >= n) return;
    unsigned keep = keep_bits(thread, key[0], p);
    for (int j = 0; j < 8 && first + j < n; j++) {
        real m = keep >> j & 1 ? scale : 0;
        y[first + j] = x ? m * real(x[first + j]) : m;
    }
}

// --- loss ---

// The smoothed target keep t_bk + spread, where t is 1 at the label (labels not null) or a soft target
__device__ real target(const long long* labels, const real* soft, int row, int k, int K, real keep, real spread) {
    return keep * (labels ? real(labels[row] == k) : soft[row * K + k]) + spread;
}

// loss = sum_bk t_bk (lse_b - x_bk) / B,  lse_b = ln sum_k exp(x_bk)    x (B, K); labels (B) or soft (B, K) is null
// parts (B) is scratch. 0 times infinity counts as 0. A label outside 0 to K-1 gives NaN, as checking it on the host
// would stall the GPU
KERNEL cross_entropy(real* loss, real* parts, unsigned* tickets, real* lse, const real* x, const long long* labels,
                     const real* soft, int B, int K, real keep, real spread) {
    int row = ROW;
    if (row < B) {
        real top = -INFINITY, sum = 0, cost = 0;
        for (int k = LANE; k < K; k += 32) top = x[row * K + k] > top ? x[row * K + k] : top;
        top = warp_max(top);
        for (int k = LANE; k < K; k += 32) sum += exp(x[row * K + k] - top);
        real log_sum = top + log(warp_sum(sum));
        for (int k = LANE; k < K; k += 32) {
            real t = target(labels, soft, row, k, K, keep, spread);
            cost += t == 0 ? 0 : t * (log_sum - x[row * K + k]);
        }
        cost = warp_sum(cost) / B;
        if (LANE == 0) {
            lse[row] = log_sum;
            parts[row] = labels && (labels[row] < 0 || labels[row] >= K) ? real(NAN) : cost;
        }
    }
    if (!last_of(tickets, gridDim.x)) return;
    real total = 0;
    for (int i = threadIdx.x; i < B; i += blockDim.x) total += __ldcg(parts + i);
    total = sum_of_block(total);
    if (threadIdx.x == 0) loss[0] = total;
}

// dx_bk = (exp(x_bk - lse_b) sum_k t_bk - t_bk) dloss / B,  dsoft_bk = keep (lse_b - x_bk) dloss / B (or null)
KERNEL cross_entropy_dx(real* dx, real* dsoft, const real* dloss, const real* x, const real* lse,
                        const long long* labels, const real* soft, int B, int K, real keep, real spread) {
    int row = ROW;
    if (row >= B) return;
    real total = 0, share = dloss[0] / B;
    for (int k = LANE; k < K; k += 32) total += target(labels, soft, row, k, K, keep, spread);
    total = warp_sum(total);
    for (int k = LANE; k < K; k += 32) {
        int i = row * K + k;
        dx[i] = (exp(x[i] - lse[row]) * total - target(labels, soft, row, k, K, keep, spread)) * share;
        if (dsoft) dsoft[i] = keep * (lse[row] - x[i]) * share;
    }
}

// --- optimizer ---

// sum = sum of x^2,  parts[k] = the same over the k-th, (k + blocks)-th, (k + 2 blocks)-th, ... 256 numbers
// x (n), parts (blocks); at most 256 blocks, all along y
KERNEL squares(real* sum, real* parts, unsigned* tickets, const real* x, int n) {
    real part = 0;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x) part += x[i] * x[i];
    part = sum_of_block(part);
    if (threadIdx.x == 0) parts[blockIdx.y] = part;
    if (!last_of(tickets + blockIdx.x, gridDim.y)) return;
    part = sum_of_block(threadIdx.x < gridDim.y ? __ldcg(parts + threadIdx.x) : 0);
    if (threadIdx.x == 0) sum[0] = part;
}

// y[start + i] = x[i] for i < size, or 0 if x is null
// table (count, 3): the address of each x (or 0), its start in y, and its size
KERNEL gather(real* y, const u64* table, int count) {
    const u64* row = table + 3 * blockIdx.y;
    const real* x = (const real*)row[0];
    for (int i = THREAD; i < (int)row[2]; i += gridDim.x * blockDim.x) y[row[1] + i] = x ? x[i] : 0;
}

// g = s grad,  s = max_norm / (norm + 1e-6) if norm = sqrt(norm2) is above max_norm, else 1
// w = (1 - lr decay) w for the first `decayed` numbers;  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
// w = w - lr (m / fix1) / (sqrt(v) / fix2 + eps),  fix1 = 1 - beta1^t,  fix2 = sqrt(1 - beta2^t)
// average = ema average + (1 - ema) w    (average may be null)
// now = (lr, fix1, fix2) changes from step to step, so it is in device memory. If norm is not finite, nothing changes
KERNEL adamw(real* w, real* m, real* v, real* average, const real* grad, const real* norm2, const real* now, int n,
             int decayed, real max_norm, real decay, real beta1, real rest1, real beta2, real rest2, real eps,
             real ema, real rest) {
    int i = THREAD;
    real norm = sqrt(norm2[0]), lr = now[0];
    if (i >= n || !(norm < INFINITY)) return;
    real g = norm > max_norm ? grad[i] * (max_norm / (norm + real(1e-6))) : grad[i];
    real weight = i < decayed ? w[i] * (1 - lr * decay) : w[i];
    m[i] = beta1 * m[i] + rest1 * g;
    v[i] = beta2 * v[i] + rest2 * g * g;
    weight -= lr / now[1] * m[i] / (sqrt(v[i]) / now[2] + eps);
    w[i] = weight;
    if (average) average[i] = ema * average[i] + rest * weight;
}

// --- for matrix products ---

// y = x
KERNEL to_fp32(real* y, const stored* x, int n) {
    int i = THREAD;
    if (i < n) y[i] = x[i];
}

// y = x, rounded
KERNEL to_bf16(stored* y, const real* x, int n) {
    int i = THREAD;
    if (i < n) y[i] = x[i];
}

// Up to 5 arrays of matrices along two axes: start addresses, and strides in bytes of the outer and the inner axis
struct Matrices { u64 start[5], outer[5], inner[5]; };

// at[k, i] = start_k + (i / inner) outer_k + (i mod inner) inner_k    the address of the i-th matrix of array k
KERNEL addresses(u64* at, Matrices m, int inner, int count) {
    int i = THREAD;
    if (i >= count) return;
    for (int k = 0; k < 5; k++) at[k * count + i] = m.start[k] + i / inner * m.outer[k] + i % inner * m.inner[k];
}
