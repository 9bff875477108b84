"""Layer-wise rates: the factor of each layer, whether blocks are of one kind or of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.training.layer_decay import layer_scales, scale_by_layer
from research.training.optimizer import AdamW


def test_factors_shrink_towards_the_input():
    params = {
        "bert": {
            "token_embedding": {"table": jnp.ones((5, 2))},
            "input": {"norm": {"scale": jnp.ones(2)}},
            "stack": {"blocks_0": {"kernel": jnp.ones((2, 3))}, "blocks_1": {"kernel": jnp.ones((2, 3))}},
            "final_norm": {"scale": jnp.ones(2)},
        },
        "class_head": {"kernel": jnp.ones((2, 4))},
    }
    found = layer_scales(params, 0.5)
    bert = found["bert"]
    assert found["class_head"]["kernel"] == bert["final_norm"]["scale"] == 1.0
    # Layers 1 to 4 are blocks_0[0], blocks_1[0], blocks_0[1], blocks_1[1].
    np.testing.assert_allclose(bert["stack"]["blocks_0"]["kernel"][:, 0], [0.5**4, 0.5**2])
    np.testing.assert_allclose(bert["stack"]["blocks_1"]["kernel"][:, 0], [0.5**3, 0.5**1])
    assert bert["token_embedding"]["table"] == bert["input"]["norm"]["scale"] == 0.5**5
    one_kind = layer_scales({"stack": {"blocks": {"kernel": jnp.ones((3, 1))}}}, 0.5)
    np.testing.assert_allclose(one_kind["stack"]["blocks"]["kernel"][:, 0], [0.125, 0.25, 0.5])
    pair = layer_scales(
        {side: {"blocks": {"x": jnp.ones(n)}} for side, n in (("encoder", 3), ("decoder", 1))}, 0.5
    )
    np.testing.assert_allclose(pair["encoder"]["blocks"]["x"], [0.125, 0.25, 0.5])
    np.testing.assert_allclose(pair["decoder"]["blocks"]["x"], [0.5])


def test_an_update_is_scaled_after_adam():
    params = {"input": {"scale": jnp.ones(2)}, "head": {"scale": jnp.ones(2)}}
    gradients = {"input": {"scale": jnp.array([3.0, -1.0])}, "head": {"scale": jnp.array([0.1, 5.0])}}
    updates = {}
    for decay in (1.0, 0.25):
        optimizer = AdamW(learning_rate=0.1, layer_decay=decay).build(optax.constant_schedule(1.0))
        with jax.numpy_dtype_promotion("standard"):  # as the step does, for optax's integer counts
            updates[decay], _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates[0.25]["head"]["scale"], updates[1.0]["head"]["scale"])
    np.testing.assert_allclose(updates[0.25]["input"]["scale"], 0.25 * updates[1.0]["input"]["scale"])
    assert scale_by_layer(0.5).init(params) == optax.EmptyState()
