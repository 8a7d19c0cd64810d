"""Answer requests from a bundle: the server behind `compress serve`.

It is a package of its own because it knows nothing of how a bundle came to be: it stands on `export`
alone, never imports `compress`, and works where torch is not installed. `serve.app.create_app` and
`serve.runner.run` are its public names.

How a request travels: `middleware` gives it an id, `routes_image` checks what may be checked before
work, `multipart` finds the files in a form, `looks` makes the work of each, `queue` admits it, one of
the queue's threads runs `pipeline` (decode, fit, predict, restore, encode), and `metrics` has timed
every stage.
"""
