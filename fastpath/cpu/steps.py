"""Whole forward passes in one call (Numba, CPU): the arithmetic of ``minispec.models.transformer``
and ``minispec.models.eagle_draft`` without any Python between two products.

A pass is a loop over the layers. Each product is split among the threads; everything between
two products is small. States are float32 whatever the dtype of the weights (``kernels.cast_states``
has what a product makes of them). Weights are stacked: one array for each kind of matrix, with the
layers first, and projections that read the same states concatenated. What only some models have
(biases, norms of queries and keys, norms after attention and MLP) is an empty array in the others.

Shapes: ``T`` new positions, ``D`` hidden size, ``S`` cache positions, ``L`` layers.
"""

import math

import numpy as np
from numba import njit, prange

from fastpath.cpu.attention import attend
from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import (
    allocate_buffer,
    cast_states,
    layer_of,
    multiply,
    multiply_block,
    split_rows,
)
from fastpath.cpu.process import CACHE


@njit(cache=CACHE, fastmath={"reassoc", "contract"})
def apply_rms_norm(x, weight, epsilon, out, first):
    """RMSNorm of x (T, D) -> out[:, first : first + D], where out is (T, >= first + D)."""
    width = x.shape[1]
    for t in range(len(x)):
        total = np.float32(0)
        for d in range(width):
            total += x[t, d] * x[t, d]
        scale = np.float32(1 / math.sqrt(total / width + epsilon))
        for d in range(width):
            out[t, first + d] = x[t, d] * scale * weight[d]


@njit(cache=CACHE)
def apply_rope(x, cos, sin):
    """Rotary position embedding of one head x (head_dim,), in place; cos and sin (head_dim,)."""
    half = len(x) // 2
    for d in range(half):
        left, right = x[d], x[half + d]
        x[d] = left * cos[d] - right * sin[d]
        x[half + d] = right * cos[half + d] + left * sin[half + d]


@njit(parallel=True, cache=CACHE, error_model="numpy")
def apply_gate(gate_up, scales, states, gelu, both, out, threads):
    """act(gate(x)) * up(x) of states (T, D) -> out (T, M), where act is SiLU or tanh-GELU.

    ``gate_up`` (2 M, D) holds the rows of both projections; ``both`` (T, 2 M) receives their
    products. Either activation is gate * sigmoid(z): z = gate for SiLU, and for GELU, since
    (1 + tanh(y)) / 2 = sigmoid(2 y), z = 2 sqrt(2 / pi) (gate + 0.044715 gate^3). Python's error
    for a division by 0, which cannot happen here, would keep the loop from being vectorised.
    """
    new, inner = out.shape
    inputs = cast_states(gate_up, states)
    for thread in prange(threads):
        first, last = split_rows(inner, thread, threads)
        multiply_block(gate_up, scales, inputs, both, first, last, 0)
        multiply_block(gate_up, scales, inputs, both, inner + first, inner + last, 0)
        for t in range(new):
            for i in range(first, last):
                gate = both[t, i]
                z = gate
                if gelu:
                    cubic = np.float32(0.044715) * gate * gate * gate
                    z = np.float32(1.5957691216057308) * (gate + cubic)
                out[t, i] = gate / (np.float32(1) + exponential(-z)) * both[t, inner + i]


@njit(cache=CACHE)
def run_layer(x, inputs, weights, scales, norms, settings, cos, sin, keys, values, place, threads):
    """One decoder layer: adds the output of attention over ``inputs`` (T, input size), then the
    output of the MLP, to the residual stream x (T, D) in place. Writes the new keys and values
    into keys and values (S, num_key_value_heads, head_dim).

    ``weights``: query, key and value projections as (heads + 2 num_key_value_heads) * head_dim
    rows; output; gate and up; down. ``scales``: the scales of their rows. ``norms``: before the
    MLP, after attention, after the MLP, of queries, of keys; then the biases of the first two
    ``weights``. ``settings``: epsilon, attention's scale and window, whether the activation is
    GELU, the number of heads, the MLP's inner size. ``cos``, ``sin`` (context, head_dim).
    ``place``: see ``positions.place_tokens``.
    """
    mlp_norm, attention_post_norm, mlp_post_norm, query_norm, key_norm, bias, output_bias = norms
    epsilon, scale, window, gelu, heads, inner_size = settings
    start, positions = place[0], place[1]
    projections, output, gate_up, down = weights
    projections_scale, output_scale, gate_up_scale, down_scale = scales
    new, width = x.shape
    num_key_value_heads, head_dim = keys.shape[1], keys.shape[2]

    # (T, (heads + 2 num_key_value_heads) * head_dim)
    projected = allocate_buffer(new, (heads + 2 * num_key_value_heads) * head_dim)
    multiply(projections, projections_scale, inputs, projected, threads)
    if len(bias):
        projected += bias
    split = projected.reshape(new, heads + 2 * num_key_value_heads, head_dim)
    for t in range(new):
        if len(query_norm):
            queries, new_keys = split[t, :heads], split[t, heads : heads + num_key_value_heads]
            apply_rms_norm(queries, query_norm, epsilon, queries, 0)
            apply_rms_norm(new_keys, key_norm, epsilon, new_keys, 0)
        for head in range(heads + num_key_value_heads):
            apply_rope(split[t, head], cos[positions[t]], sin[positions[t]])
        keys[start + t] = split[t, heads : heads + num_key_value_heads]
        values[start + t] = split[t, heads + num_key_value_heads :]
    attended = allocate_buffer(new, heads * head_dim)  # (T, heads * head_dim)
    by_head = attended.reshape(new, heads, head_dim)
    attend(split, keys, values, place, window, scale, by_head, threads)
    update = allocate_buffer(new, width)  # (T, D)
    multiply(output, output_scale, attended, update, threads)
    if len(output_bias):
        update += output_bias
    if len(attention_post_norm):
        apply_rms_norm(update, attention_post_norm, epsilon, update, 0)
    x += update

    normed = allocate_buffer(new, width)
    apply_rms_norm(x, mlp_norm, epsilon, normed, 0)
    inner = allocate_buffer(new, inner_size)  # (T, M)
    both = allocate_buffer(new, 2 * inner_size)
    apply_gate(gate_up, gate_up_scale, normed, gelu, both, inner, threads)
    multiply(down, down_scale, inner, update, threads)
    if len(mlp_post_norm):
        apply_rms_norm(update, mlp_post_norm, epsilon, update, 0)
    x += update


@njit(cache=CACHE)
def run_target(
    x,
    weights,
    scales,
    norms,
    settings,
    local,
    ropes,
    cos,
    sin,
    keys,
    values,
    place,
    aux_hidden_state_layer_ids,
    threads,
):
    """All layers of a target over embeddings x (T, D) -> final hidden states (T, D) and auxiliary
    hidden states (T, n_aux * D).

    ``norms``: before attention (L, D), those of ``run_layer``, each (L, D), and the final one (D,).
    ``settings``: as in ``run_layer``; the window applies only to layers that are ``local`` (L,).
    ``cos``, ``sin`` (R, context, head_dim), of which each layer has that of its index in ``ropes``
    (L,). ``keys``, ``values`` (L, S, num_key_value_heads, head_dim). ``place``: as in
    ``run_layer``.
    """
    attention_norms, inner_norms, final_norm = norms
    (
        mlp_norms,
        attention_post_norms,
        mlp_post_norms,
        query_norms,
        key_norms,
        biases,
        output_biases,
    ) = inner_norms
    epsilon, scale, window, gelu, heads, inner_size = settings
    new, width = x.shape
    normed = allocate_buffer(new, width)
    aux_hidden_states = allocate_buffer(new, len(aux_hidden_state_layer_ids) * width)
    num_aux = 0
    projections, output, gate_up, down = weights
    projections_scale, output_scale, gate_up_scale, down_scale = scales
    for index in range(len(attention_norms)):
        apply_rms_norm(x, attention_norms[index], epsilon, normed, 0)
        own_projections, own_projections_scale = layer_of(projections, projections_scale, index)
        own_output, own_output_scale = layer_of(output, output_scale, index)
        own_gate_up, own_gate_up_scale = layer_of(gate_up, gate_up_scale, index)
        own_down, own_down_scale = layer_of(down, down_scale, index)
        run_layer(
            x,
            normed,
            (own_projections, own_output, own_gate_up, own_down),
            (own_projections_scale, own_output_scale, own_gate_up_scale, own_down_scale),
            (
                mlp_norms[index],
                attention_post_norms[index],
                mlp_post_norms[index],
                query_norms[index],
                key_norms[index],
                biases[index],
                output_biases[index],
            ),
            (epsilon, scale, window if local[index] else keys.shape[1], gelu, heads, inner_size),
            cos[ropes[index]],
            sin[ropes[index]],
            keys[index],
            values[index],
            place,
            threads,
        )
        if (
            num_aux < len(aux_hidden_state_layer_ids)
            and index + 1 == aux_hidden_state_layer_ids[num_aux]
        ):
            aux_hidden_states[:, num_aux * width : (num_aux + 1) * width] = x
            num_aux += 1
    apply_rms_norm(x, final_norm, epsilon, normed, 0)
    return normed, aux_hidden_states


@njit(cache=CACHE)
def run_draft(
    embedded, states, weights, scales, norms, settings, cos, sin, keys, values, place, threads
):
    """The draft's layer over embeddings (T, D) of the next tokens and states (T, D) -> the draft's
    own states (T, D).

    ``norms``: of the embedding, of the state, those of ``run_layer``, and of the output. ``keys``,
    ``values`` (S, num_key_value_heads, head_dim). ``place``: as in ``run_layer``.
    """
    embedding_norm, state_norm, inner_norms, output_norm = norms
    new, width = states.shape
    inputs = allocate_buffer(new, 2 * width)  # (T, 2 D): embedding and state side by side
    apply_rms_norm(embedded, embedding_norm, settings[0], inputs, 0)
    apply_rms_norm(states, state_norm, settings[0], inputs, width)
    x = allocate_buffer(new, width)
    x[:] = states
    run_layer(
        x, inputs, weights, scales, inner_norms, settings, cos, sin, keys, values, place, threads
    )
    if len(output_norm):
        apply_rms_norm(x, output_norm, settings[0], x, 0)
    return x
