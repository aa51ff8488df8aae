"""The conformance suite: whether an end of a WebSocket connection does what RFC 6455 and RFC 7692 say.

Run it with ``python -m conformance``; ``README.md`` explains the commands. It has two halves:

* ``wstest`` and ``autobahn`` run the Autobahn Testsuite against both ends of anyio_ws,
* the other modules are a suite of our own, for any server and any client: ``cases`` has what it demands.

Nobody imports anyio_ws here but ``echo``, the ends that are examined: a judge that shares code with the
judged finds no fault.
"""
