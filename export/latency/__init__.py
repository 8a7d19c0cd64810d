"""Milliseconds of a pruned network, predicted before it exists from measured times of its layers.

A network is a list of layers whose widths are linear in named groups of channels. A table holds the time of each kind
of layer at a grid of widths, in the precision that will serve, as a ratio to a reference convolution. The sum over the
layers, at any choice of widths, is a prediction; what is reliable is the ratio of two predictions.

    layers = layers_of(graph, size=(256, 256), widths={"model.stem.0.weight": Linear.of("stem.0"), ...})
    choices = {"stem.0": [16, 32, 48, 64], ...}
    keys = keys_needed(layers, choices)
    table = cached_table(keys, precision="int8", threads=2, size=(256, 256), progress=...)
    dense, pruned = (table.predict(layers, widths) for widths in ({"stem.0": 64, ...}, {"stem.0": 32, ...}))

- `export.latency.layers`: `layers_of(graph, size=, widths=)`, `Layer`, `unmodelled(layers)`.
- `export.latency.grid`: `grid(full)`, `keys_needed(layers, choices)`.
- `export.latency.measure`: `measure_table(keys, path=, ...)` and `cached_table(keys, ...)` measure what is missing;
  `reference_now(precision, threads)` times the reference again, for the milliseconds it takes now.
- `export.latency.table`: `LatencyTable.load(path)`, `.require(layers, choices, precision=, size=)`,
  `.ratio(key)`, `.predict(layers, widths)`.
- `export.latency.dense`: `dense_layers(graph, size)`: every width that a network may be cut to, where its groups are
  not known.

It is a package of its own, and without torch, so that the machine that will serve can measure. It needs the package
onnx (the extra `bench`), which nothing else in `export` may need.
"""
