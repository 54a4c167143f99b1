"""The papers' other classifiers, one file each, with one signature.

Each file holds the frozen settings of one method with the published defaults and

    objective(graphs, params, rest, batch, method, rng=None, *, training=True)
        -> (loss, (metrics, updated rest))

pure and ready for `jax.value_and_grad(..., argnums=1, has_aux=True)`. ``graphs`` is
`isnet_jax.isnet.programs(model)`, ``params`` and ``rest`` are `isnet_jax.isnet.variables(model)`,
``batch`` holds "image" (b, h, w, c) and "label" (b,) int and what the method's docstring adds.
"""
