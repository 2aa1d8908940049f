"""How a script reports: one line per feature, `ok`, `FAIL reason` or `-` where the driver has no such thing."""

import sys


def feature(name):
    """Runs the decorated function at once."""

    def run(body):
        try:
            body()
            print(name, "ok", flush=True)
        except BaseException as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(name, "FAIL", reason[:300], flush=True)
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)

    return run


def absent(name):
    print(name, "-", flush=True)


def equal(found, expected):
    assert found == expected, f"{str(found)[:100]} instead of {str(expected)[:100]}"
