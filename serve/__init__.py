"""Answer requests from a bundle: the server behind `compress serve`.

It is a package of its own because it does not depend on how a bundle was made: it builds on `export`
alone, never imports `compress`, and works where torch is not installed. `serve.app.create_app` and
`serve.runner.run` are its public names.

The path of a request: `middleware` gives it an id, `routes_image` checks all that can be checked before
any work, `multipart` finds the files in a form, `looks` makes each of them into work, `queue` admits the
work, and one of the queue's threads runs `pipeline` on it (decode, fit, predict, restore, encode).
`metrics` times every stage.
"""
