"""Wrong answers to A2, mistakes that students make: (name, the answers' cells, the points that they lose by test)."""

LINEAR = """
def my_linear(x, W, b):
    rows = x.reshape(-1, x.shape[-1])

    def backward(dy):
        flat = dy.reshape(-1, dy.shape[-1])
        return dy @ W.T, rows.T @ flat, flat.sum(0)

    return x @ W + b, backward
"""
NORM = """
def my_layer_norm(x, weight, bias, *, eps=1e-6):
    centered = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    n = centered / sigma

    def backward(dy):
        g, front = dy * weight, tuple(range(x.ndim - 1))
        dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / sigma
        return dx, (dy * n).sum(front), dy.sum(front)

    return n * weight + bias, backward
"""
GELU = """
def my_gelu(x):
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(c * (x + k * x**3))
    slope = (1 + t) / 2 + x * (1 - t**2) * c * (1 + 3 * k * x**2) / 2
    return x * (1 + t) / 2, lambda dy: dy * slope
"""
SIGMOID_FORM = """
def my_gelu(x):
    s = 1 / (1 + np.exp(-1.702 * x))
    return x * s, lambda dy: dy * (s + 1.702 * x * s * (1 - s))
"""
LOSS = """
def my_cross_entropy(logits, classes):
    B = len(classes)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def backward(dL):
        dlogits = np.exp(log_p)
        dlogits[np.arange(B), classes] -= 1
        return dlogits * (dL / B)

    return -log_p[np.arange(B), classes].mean(), backward
"""
LOG_OF_SOFTMAX = """
def my_cross_entropy(logits, classes):
    B = len(classes)
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    t = (classes[:, None] == np.arange(logits.shape[1])).astype(logits.dtype)
    return -np.log(p[np.arange(B), classes]).mean(), lambda dL: (p - t) * (dL / B)
"""
CHANGED_IN_BACKWARD = """
def my_cross_entropy(logits, classes):
    B = len(classes)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)

    def backward(dL):
        p[np.arange(B), classes] -= 1
        return p * (dL / B)

    return -log_p[np.arange(B), classes].mean(), backward
"""
ADAMW = """
def my_adamw(w, g, m, v, t, lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    w = (1 - lr * weight_decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v
"""
linear, linear_hidden = {"a2-linear-1": 2, "a2-linear-2": 1}, {"a2-linear-2": 1}
norm, norm_hidden = {"a2-norm-1": 2, "a2-norm-2": 2}, {"a2-norm-2": 2}
gelu, gelu_hidden = {"a2-gelu-1": 1, "a2-gelu-2": 1}, {"a2-gelu-2": 1}
loss, loss_hidden = {"a2-loss-1": 2, "a2-loss-2": 1}, {"a2-loss-2": 1}
adamw, adamw_hidden = {"a2-adamw-1": 2, "a2-adamw-2": 2}, {"a2-adamw-2": 2}

wrong = [
    ("dW transposed", {"a2-linear": LINEAR.replace("rows.T @ flat", "flat.T @ rows")}, linear),
    ("db not summed", {"a2-linear": LINEAR.replace("flat.sum(0)", "dy")}, linear),
    ("db summed over the first axis alone", {"a2-linear": LINEAR.replace("flat.sum(0)", "dy.sum(0)")}, linear_hidden),
    ("W reshaped in place of transposed", {"a2-linear": LINEAR.replace("W.T", "W.reshape(W.shape[::-1])")}, linear),
    ("db in float64", {"a2-linear": LINEAR.replace("flat.sum(0)", "flat.sum(0, dtype=float)")}, linear_hidden),
    (
        "variance divided by C - 1",
        {
            "a2-norm": NORM.replace(
                ".mean(-1, keepdims=True) + eps", ".sum(-1, keepdims=True) / (x.shape[-1] - 1) + eps"
            )
        },
        norm,
    ),
    ("normalized over the tokens", {"a2-norm": NORM.replace("-1, keepdims", "0, keepdims")}, norm),
    (
        "mean and deviation taken for constants",
        {
            "a2-norm": NORM.replace(
                "dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True))", "dx = g"
            )
        },
        norm,
    ),
    ("deviation taken for a constant", {"a2-norm": NORM.replace(" - n * (g * n).mean(-1, keepdims=True)", "")}, norm),
    ("weight left out of dx", {"a2-norm": NORM.replace("dy * weight, tuple", "dy, tuple")}, norm),
    ("eps outside the root", {"a2-norm": NORM.replace("keepdims=True) + eps)", "keepdims=True)) + eps")}, norm_hidden),
    (
        "mean of squares minus square of the mean",
        {
            "a2-norm": NORM.replace(
                "(centered**2).mean(-1, keepdims=True)",
                "(x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2",
            )
        },
        norm_hidden,
    ),
    (
        "dweight summed over the first axis alone",
        {"a2-norm": NORM.replace("(dy * n).sum(front)", "(dy * n).sum(0)")},
        norm_hidden,
    ),
    ("slope without the derivative of u", {"a2-gelu": GELU.replace(" * c * (1 + 3 * k * x**2)", "")}, gelu),
    ("dy forgotten", {"a2-gelu": GELU.replace("dy * slope", "slope")}, gelu),
    (
        "sigmoid form",
        {"a2-gelu": SIGMOID_FORM},
        gelu,
    ),
    (
        "tanh by exponentials",
        {
            "a2-gelu": GELU.replace(
                "np.tanh(c * (x + k * x**3))", "np.exp(2 * c * (x + k * x**3))\n    t = (t - 1) / (t + 1)"
            )
        },
        gelu_hidden,
    ),
    (
        "constants in float64",
        {
            "a2-gelu": GELU.replace(
                "c, k = math.sqrt(2 / math.pi), 0.044715", "c, k = np.array([math.sqrt(2 / math.pi)]), 0.044715"
            )
        },
        gelu_hidden,
    ),
    ("sum over the samples", {"a2-loss": LOSS.replace(".mean()", ".sum()").replace("dL / B", "dL")}, loss),
    ("dlogits not divided by B", {"a2-loss": LOSS.replace("dL / B", "dL")}, loss),
    (
        "1 subtracted in all columns of the classes",
        {"a2-loss": LOSS.replace("dlogits[np.arange(B), classes]", "dlogits[:, classes]")},
        loss,
    ),
    ("dL ignored", {"a2-loss": LOSS.replace("dL / B", "1 / B")}, loss),
    ("logarithm of softmax", {"a2-loss": LOG_OF_SOFTMAX}, loss_hidden),
    ("maximum of all logits", {"a2-loss": LOSS.replace("max(1, keepdims=True)", "max()")}, loss_hidden),
    ("probabilities changed by backward", {"a2-loss": CHANGED_IN_BACKWARD}, loss),
    (
        "one-hot rows in float64",
        {
            "a2-loss": LOSS.replace(
                "        dlogits[np.arange(B), classes] -= 1",
                "        dlogits = dlogits - np.eye(logits.shape[1])[classes]",
            )
        },
        loss_hidden,
    ),
    (
        "decay in the gradient",
        {
            "a2-adamw": ADAMW.replace("    m = beta1", "    g = g + weight_decay * w\n    m = beta1").replace(
                "(1 - lr * weight_decay) * w", "w"
            )
        },
        adamw,
    ),
    (
        "decay without the learning rate",
        {"a2-adamw": ADAMW.replace("1 - lr * weight_decay", "1 - weight_decay")},
        adamw,
    ),
    ("no bias correction", {"a2-adamw": ADAMW.replace("/ (1 - beta1**t)", "").replace("/ (1 - beta2**t)", "")}, adamw),
    (
        "m and v returned with the correction",
        {"a2-adamw": ADAMW.replace("return w, m, v", "return w, m_hat, v_hat")},
        adamw,
    ),
    (
        "decay after the step",
        {
            "a2-adamw": ADAMW.replace(
                "(1 - lr * weight_decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)",
                "(1 - lr * weight_decay) * (w - lr * m_hat / (np.sqrt(v_hat) + eps))",
            )
        },
        adamw,
    ),
    (
        "m and v changed in place",
        {
            "a2-adamw": ADAMW.replace("m = beta1 * m + (1 - beta1) * g", "m += (1 - beta1) * (g - m)").replace(
                "v = beta2 * v + (1 - beta2) * g**2", "v += (1 - beta2) * (g**2 - v)"
            )
        },
        {"a2-adamw-1": 2},
    ),
    ("bias correction of the first step always", {"a2-adamw": ADAMW.replace("**t", "")}, adamw_hidden),
    (
        "eps under the root",
        {"a2-adamw": ADAMW.replace("np.sqrt(v_hat) + eps", "np.sqrt(v_hat + eps)")},
        adamw,
    ),
    (
        "eps before the correction of v",
        {"a2-adamw": ADAMW.replace("np.sqrt(v_hat) + eps", "(np.sqrt(v) + eps) / math.sqrt(1 - beta2**t)")},
        adamw,
    ),
    ("w in float64", {"a2-adamw": ADAMW.replace("return w,", "return w.astype(float),")}, adamw_hidden),
]
