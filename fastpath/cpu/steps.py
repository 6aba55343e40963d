"""Whole passes in one call (Numba, CPU): the arithmetic of ``minispec.models.transformer`` and
``minispec.models.eagle_draft`` without a Python step between two products.

A pass is a loop over layers in which every product is shared out to the threads and all that
lies between is small. States are float32 whatever the weights are (see
``kernels.fitting`` for what a product makes of them). Weights come stacked:
one array for each kind of matrix, layers first, projections that read the same states side by
side. What one kind of model has and another has not (norms of queries, norms behind) comes as
arrays of no length where it is missing.

Shapes: ``T`` new positions, ``D`` width, ``S`` positions of the cache, ``L`` layers.
"""

import math

import numpy as np
from numba import njit, prange

from fastpath.cpu.attention import attention
from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import fitting, product, room, span


@njit(cache=True, fastmath={"reassoc", "contract"})
def normed(x, weight, epsilon, out, first):
    """RMSNorm of x (T, D) into the columns of out (T, >= first + D) from ``first`` on."""
    width = x.shape[1]
    for t in range(len(x)):
        total = np.float32(0)
        for d in range(width):
            total += x[t, d] * x[t, d]
        scale = np.float32(1 / math.sqrt(total / width + epsilon))
        for d in range(width):
            out[t, first + d] = x[t, d] * scale * weight[d]


@njit(cache=True)
def apply_rope(x, cos, sin):
    """Rotary embedding of one head (head_width,), in place; cos and sin (head_width,)."""
    half = len(x) // 2
    for d in range(half):
        left, right = x[d], x[half + d]
        x[d] = left * cos[d] - right * sin[d]
        x[half + d] = right * cos[half + d] + left * sin[half + d]


@njit(parallel=True, cache=True)
def gated(gate_up, scales, states, gelu, both, out, threads):
    """silu(gate(x)) * up(x) of states (T, D) -> out (T, M), or with GELU in its tanh form, where
    ``gate_up`` (2 M, D) holds the rows of both; ``both`` (T, 2 M) is room to work in.

    Either is the gate times a sigmoid: of the gate itself or, since (1 + tanh(z)) / 2 =
    sigmoid(2 z), of 2 sqrt(2 / pi) (gate + 0.044715 gate^3).
    """
    new, inner = out.shape
    read = fitting(gate_up, states)
    for thread in prange(threads):
        first, last = thread * inner // threads, (thread + 1) * inner // threads
        span(gate_up, scales, read, both, first, last)
        span(gate_up, scales, read, both, inner + first, inner + last)
        for t in range(new):
            for i in range(first, last):
                gate = both[t, i]
                steep = gate
                if gelu:
                    cubic = np.float32(0.044715) * gate * gate * gate
                    steep = np.float32(1.5957691216057308) * (gate + cubic)
                out[t, i] = gate / (np.float32(1) + exponential(-steep)) * both[t, inner + i]


@njit(cache=True)
def layer(x, read, weights, scales, norms, settings, cos, sin, keys, values, start, threads):
    """One decoder layer: adds to x (T, D) what attention makes of ``read`` (T, input width)
    and what the MLP makes of the sum, and writes keys and values (S, kv_heads, head_width)
    of positions ``start`` and following.

    ``weights``: query, key and value projections as one (heads + 2 kv_heads) * head_width
    rows; output; gate and up as one; down. ``scales``: their rows' scales. ``norms``: before
    the MLP, behind attention, behind the MLP, of queries and of keys. ``settings``: epsilon,
    attention's scale and window, whether the MLP has GELU. ``cos``, ``sin`` (T, head_width).
    """
    mlp_norm, attention_post_norm, mlp_post_norm, query_norm, key_norm = norms
    epsilon, scale, window, gelu = settings
    projections, output, gate_up, down = weights
    projections_scale, output_scale, gate_up_scale, down_scale = scales
    new, width = x.shape
    num_key_value_heads, head_dim = keys.shape[1], keys.shape[2]
    heads = output.shape[1] // head_dim

    projected = room(new, len(projections))
    product(projections, projections_scale, read, projected, threads)
    split = projected.reshape(new, heads + 2 * num_key_value_heads, head_dim)
    for t in range(new):
        if len(query_norm):
            queries, new_keys = split[t, :heads], split[t, heads : heads + num_key_value_heads]
            normed(queries, query_norm, epsilon, queries, 0)
            normed(new_keys, key_norm, epsilon, new_keys, 0)
        for head in range(heads + num_key_value_heads):  # queries and keys know their positions
            apply_rope(split[t, head], cos[t], sin[t])
        keys[start + t] = split[t, heads : heads + num_key_value_heads]
        values[start + t] = split[t, heads + num_key_value_heads :]
    mixed = room(new, heads * head_dim)
    heads_mixed = mixed.reshape(new, heads, head_dim)
    attention(split, keys, values, start, window, scale, heads_mixed, threads)
    added = room(new, width)
    product(output, output_scale, mixed, added, threads)
    if len(attention_post_norm):
        normed(added, attention_post_norm, epsilon, added, 0)
    x += added

    quiet = room(new, width)
    normed(x, mlp_norm, epsilon, quiet, 0)
    inner = room(new, down.shape[1])
    gated(gate_up, gate_up_scale, quiet, gelu, room(new, len(gate_up)), inner, threads)
    product(down, down_scale, inner, added, threads)
    if len(mlp_post_norm):
        normed(added, mlp_post_norm, epsilon, added, 0)
    x += added


@njit(cache=True)
def target_pass(
    x,
    weights,
    scales,
    norms,
    settings,
    local,
    cos,
    sin,
    keys,
    values,
    start,
    aux_hidden_state_layer_ids,
    threads,
):
    """All layers of a target over embeddings x (T, D): hidden (T, D), taps (T, n * D).

    ``norms``: before attention, those of ``layer``, each (L, D), and the last (D,).
    ``settings``: as in ``layer``, but that the window is that of layers that are ``local`` (L,).
    ``cos``, ``sin`` (2, T, head_width): for the layers that see everything, and for the others.
    keys, values (L, S, kv, hw).
    """
    attention_norms, inner_norms, last_norm = norms
    mlp_norms, attention_post_norms, mlp_post_norms, query_norms, key_norms = inner_norms
    epsilon, scale, window, gelu = settings
    new, width = x.shape
    quiet = room(new, width)
    aux_hidden_states = room(new, len(aux_hidden_state_layer_ids) * width)
    tap = 0
    projections, output, gate_up, down = weights
    projections_scale, output_scale, gate_up_scale, down_scale = scales
    for index in range(len(projections)):
        normed(x, attention_norms[index], epsilon, quiet, 0)
        kind = np.int64(local[index])
        layer(
            x,
            quiet,
            (projections[index], output[index], gate_up[index], down[index]),
            (
                projections_scale[index],
                output_scale[index],
                gate_up_scale[index],
                down_scale[index],
            ),
            (
                mlp_norms[index],
                attention_post_norms[index],
                mlp_post_norms[index],
                query_norms[index],
                key_norms[index],
            ),
            (epsilon, scale, window if kind else start + new, gelu),
            cos[kind],
            sin[kind],
            keys[index],
            values[index],
            start,
            threads,
        )
        if tap < len(aux_hidden_state_layer_ids) and index + 1 == aux_hidden_state_layer_ids[tap]:
            aux_hidden_states[:, tap * width : (tap + 1) * width] = x
            tap += 1
    normed(x, last_norm, epsilon, quiet, 0)
    return quiet, aux_hidden_states


@njit(cache=True)
def draft_pass(
    embedded, states, weights, scales, norms, settings, cos, sin, keys, values, start, threads
):
    """The draft's layer over embeddings (T, D), one place ahead, and states (T, D) -> states
    (T, D). ``norms``: of the embedding, of the state, and those of ``layer``. keys, values
    (S, kv, hw)."""
    embedding_norm, state_norm, inner_norms = norms
    new, width = states.shape
    read = room(new, 2 * width)
    normed(embedded, embedding_norm, settings[0], read, 0)
    normed(states, state_norm, settings[0], read, width)
    x = room(new, width)
    x[:] = states
    layer(x, read, weights, scales, inner_norms, settings, cos, sin, keys, values, start, threads)
    return x
