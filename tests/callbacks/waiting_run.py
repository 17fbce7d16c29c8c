"""One of two processes that wait for what never comes, unless told that the second one fails."""

import sys
from os import environ
from pathlib import Path
from threading import Event

if __name__ == "__main__":
    place, *settings = sys.argv[1:]
    rank = environ["LOCAL_RANK"]
    if rank == "1" and settings:
        sys.exit("this process has failed")
    Path(place, f"begun.{rank}.json").write_text("{}")
    print("waits", flush=True)  # noqa: T201
    Event().wait()
