"""Where generated programs run: they can reach nothing, and their verdict is none of their own.

`trial` is what is run and what comes back. `sandbox` is the parent's side of a worker; `zygote` the worker, which forks the
`side`s of each trial with `linux`'s namespaces and lets `watch` bound their memory. `guest` runs the candidate and `judge`
the tests, talking by `wire`, and by `array_wire` for numpy's and its like; `program` and `context` are what both do for
programs of other languages and for DS-1000's contexts.
"""
