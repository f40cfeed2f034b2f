"""Float64 NumPy versions of the merge methods, for one tensor: plain, slow, by the formula.

Each takes the base, the tuned tensors and their weights; ``axis`` is the axis of a row.
"""

import numpy as np


def deltas_of(base, models):
    return [m - base for m in models]


def top_k(x, k):
    """Booleans for the k largest magnitudes."""
    keep = np.zeros(x.size, bool)
    keep[np.argsort(-np.abs(x).ravel(), kind="stable")[:k]] = True
    return keep.reshape(x.shape)


def elect(deltas, weights, normalize=True, method="sum", tie=1.0):
    votes = [w * d for d, w in zip(deltas, weights)]
    sign = np.sign(sum(votes if method == "sum" else [np.sign(v) for v in votes]))
    sign = np.where(sign == 0, tie, sign)
    agree = [np.sign(v) == sign for v in votes]
    total = sum(w * a for w, a in zip(weights, agree))
    merged = sum(v * a for v, a in zip(votes, agree))
    return merged / np.where(total == 0, 1, total) if normalize else merged


def linear(base, models, weights):
    return sum(w * m for w, m in zip(weights, models)) / sum(weights)


def task_arithmetic(base, models, weights, scale=1.0):
    return base + scale * sum(w * d for w, d in zip(weights, deltas_of(base, models)))


def ties(base, models, weights, density, scale=1.0):
    trimmed = [d * top_k(d, max(1, int(density * d.size))) for d in deltas_of(base, models)]
    return base + scale * elect(trimmed, weights)


def breadcrumbs_mask(d, density, gamma):
    n = d.size
    kept, top = int(density * n), int(gamma * n)
    bottom = max(0, n - kept - top)
    keep = np.zeros(n, bool)
    keep[np.argsort(np.abs(d).ravel(), kind="stable")[bottom : bottom + kept]] = True
    return keep.reshape(d.shape)


def rescale(left, before):
    """What is left of a tensor, with the L1 norm that it had."""
    return left * np.abs(before).sum() / np.abs(left).sum()


def della_chance(d, density, epsilon, axis):
    if d.ndim < 2:
        axis = -1
    n = d.shape[axis]
    if n == 1:
        return np.full(d.shape, density)
    ranks = np.argsort(np.argsort(np.abs(d), axis=axis, kind="stable"), axis=axis)
    return density - epsilon + 2 * epsilon * ranks / (n - 1)


def angle(a, b):
    cosine = np.dot(a.ravel(), b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b))
    return np.arccos(np.clip(cosine, -1, 1))


def arc(a, b, t):
    theta = angle(a, b)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def by_rows(fn, axis, *tensors):
    """Applies fn to each row of 2-D tensors, or to the whole of 1-D ones."""
    if tensors[0].ndim < 2:
        return fn(*tensors)
    moved = [np.moveaxis(t, axis, -1) for t in tensors]
    rows = [fn(*[m[i] for m in moved]) for i in range(moved[0].shape[0])]
    return np.moveaxis(np.stack(rows), -1, axis)


def model_stock(base, models):
    deltas = deltas_of(base, models)
    n = len(deltas)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    cosine = np.mean([np.cos(angle(deltas[i], deltas[j])) for i, j in pairs])
    cosine = min(max(cosine, 0), 1)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(models, axis=0) + (1 - t) * base


def multislerp(xs, weights):
    weights = np.asarray(weights) / np.sum(weights)
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / n for x, n in zip(xs, norms)]
    mean = sum(w * u for w, u in zip(weights, units))
    mean /= np.linalg.norm(mean)
    tangent = sum(w * (u - np.sum(u * mean) * mean) for w, u in zip(weights, units))
    t = np.linalg.norm(tangent)
    return (mean * np.cos(t) + tangent * np.sinc(t / np.pi)) * np.dot(weights, norms)


def karcher(xs, weights, steps=200):
    """Converged: the gradient of the summed squared angles is 0."""
    weights = np.asarray(weights) / np.sum(weights)
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / n for x, n in zip(xs, norms)]
    mean = sum(w * u for w, u in zip(weights, units))
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        logs = []
        for u in units:
            side = u - np.sum(u * mean) * mean
            logs.append(angle(u, mean) * side / max(np.linalg.norm(side), 1e-300))
        step = sum(w * v for w, v in zip(weights, logs))
        t = np.linalg.norm(step)
        mean = np.cos(t) * mean + np.sinc(t / np.pi) * step
    return mean * np.dot(weights, norms)


def sce(base, models, select_topk):
    deltas = np.stack(deltas_of(base, models))
    if select_topk < 1:
        spread = deltas.var(axis=0)
        deltas = deltas * top_k(spread, int(np.count_nonzero(spread) * select_topk))
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    energy = np.square(deltas).reshape(len(models), -1).mean(1)
    weights = (energy / energy.sum()).reshape(-1, *[1] * base.ndim) * agree
    total = weights.sum(0)
    return base + (deltas * weights).sum(0) / np.where(total == 0, 1, total)


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def fusion_scores(base, tuned, axis):
    """Arcee Fusion's importance of each element, and the threshold from which on it is taken."""
    axis = axis if base.ndim > 1 else -1
    p, q = softmax(tuned, axis) + 1e-8, softmax(base, axis) + 1e-8
    score = np.abs(tuned - base) * np.sum(p * np.log(p / q), axis=axis, keepdims=True)
    ordered = np.sort(score.ravel())
    q1, median, q3 = (ordered[int(s * (score.size - 1))] for s in (0.25, 0.5, 0.75))
    return score, median + 1.5 * (q3 - q1)


def arcee_fusion(base, tuned, axis):
    score, threshold = fusion_scores(base, tuned, axis)
    return np.where(score >= threshold, tuned, base)


def ram(base, models, epsilon):
    deltas = np.stack(deltas_of(base, models))
    changed = np.abs(deltas) > epsilon
    return base + (deltas * changed).sum(0) / np.maximum(changed.sum(0), 1)


def ramplus_tl(base, models, r, alpha, epsilon):
    deltas = np.stack(deltas_of(base, models))
    changed = np.abs(deltas) > epsilon
    count = changed.sum(0)
    merged = np.zeros_like(base)
    for delta, mine in zip(deltas, changed):
        shared, unique = np.sum(mine & (count > 1)), np.sum(mine & (count == 1))
        factor = 1 + r * min(shared / unique if unique else 0, alpha)
        merged += np.where(mine & (count == 1), factor * delta, 0)
        merged += np.where(mine & (count > 1), delta / np.maximum(count, 1), 0)
    return base + merged


def polar(x):
    """The nearest orthogonal matrix, by Newton's iteration: x has full rank."""
    q, r = np.linalg.qr(x if x.shape[0] >= x.shape[1] else x.T)
    for _ in range(60):
        r = (r + np.linalg.inv(r).T) / 2
    return q @ r if x.shape[0] >= x.shape[1] else (q @ r).T


def tsv(base, models, weights=None, scale=1.0):
    n = len(models)
    deltas = [w * d for w, d in zip(weights or [1] * n, deltas_of(base, models))]
    k = min(base.shape) // n
    parts = [np.linalg.svd(d, full_matrices=False) for d in deltas]
    left = polar(np.concatenate([u[:, :k] for u, _, _ in parts], axis=1))
    right = polar(np.concatenate([vt[:k].T for _, _, vt in parts], axis=1))
    sizes = np.concatenate([s[:k] for _, s, _ in parts])
    return base + scale * (left @ np.diag(sizes) @ right.T)


def iso_c(base, models, weights=None, scale=1.0):
    weights = weights or [1] * len(models)
    total = sum(w * d for w, d in zip(weights, deltas_of(base, models)))
    sizes = np.sqrt(np.maximum(np.linalg.eigvalsh(total.T @ total), 0))
    return base + scale * sizes.sum() / min(base.shape) * polar(total)


def regmean(kernels, grams, alpha):
    """The formula itself: no ridge, an inverse, in float64."""
    grams = [np.where(np.eye(len(g), dtype=bool), g, alpha * g) for g in grams]
    return np.linalg.inv(sum(grams)) @ sum(g @ w for g, w in zip(grams, kernels))


def entropy(logits):
    p = softmax(logits, -1)
    return float(np.mean(-np.sum(p * np.log(p), axis=-1)))
