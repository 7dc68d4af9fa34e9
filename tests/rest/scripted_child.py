"""An engine process with the scripted engine, as a program: what `braid.server --engine-child` is for the real one.

`--slow-start S` loads for S seconds; `--broken` cannot load; `--crash` dies while loading.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scripted_engine import ScriptedEngine

from braid.errors import ModelFileError
from braid.rest.child import Tell, add_arguments, run_child


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slow-start", type=float, default=0.0)
    parser.add_argument("--broken", action="store_true")
    parser.add_argument("--crash", action="store_true")
    add_arguments(parser)
    arguments = parser.parse_args()

    def build(_tell: Tell) -> ScriptedEngine:
        time.sleep(arguments.slow_start)
        if arguments.crash:
            os._exit(7)
        if arguments.broken:
            raise ModelFileError("model.gguf: the magic is b'ABCD', not b'GGUF'")
        return ScriptedEngine()

    return run_child(arguments, build)


if __name__ == "__main__":
    sys.exit(main())
