"""A worker in small: starts one step in a process of its own and feeds it until somebody kills this process.

Arguments: the spec as JSON, the lease in seconds, the log, then ``module:function`` and JSON options that make
the launcher. The end's reason and whether it was for want of memory go to standard output.
"""

import asyncio
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from schemas.steps import StepSpec


async def main() -> None:
    spec, lease, log, maker, options = sys.argv[1:]
    module, _, function = maker.partition(":")
    launcher = getattr(importlib.import_module(module), function)(**json.loads(options))
    lease_s = float(lease)
    handle = await launcher.start(StepSpec.model_validate_json(spec), lease_s=lease_s, log=Path(log))
    end = asyncio.create_task(handle.wait())
    while not (await asyncio.wait([end], timeout=lease_s / 4))[0]:
        handle.feed(lease_s)
    print(end.result().reason, end.result().signal, end.result().out_of_memory, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
