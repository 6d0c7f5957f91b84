"""The process that runs stages of `jobs.measure.gpu`: OUT, the deadline on the monotonic clock, wheels, dry, stages."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from jobs.measure.gpu import NEEDS, NO_DEVICE, RESTART, TRIAL_NEEDS
from jobs.measure.gpu_bench import Bench, UnableError


def run_stage(bench: Bench, name: str) -> bool:
    """Run a stage and store how it ended; False if the device can no longer be used."""
    bench.stage, started = name, time.monotonic()
    needs = TRIAL_NEEDS if bench.dry else NEEDS[name]
    if bench.left() < needs:
        bench.say(status="skipped", reason=f"{bench.left():.0f} s left, needs {needs}")
        return True
    bench.say(status="started", pid=os.getpid())
    try:
        _stage(name)(bench)
    except UnableError as reason:
        bench.say(status="skipped", reason=str(reason))
    except Exception as error:
        bench.say(status="error", reason=repr(error)[:500], traceback=traceback.format_exc()[-3000:])
        return "CUDA error" not in str(error)
    else:
        bench.say(status="done", seconds=round(time.monotonic() - started, 1))
    finally:
        bench.empty()
    return True


def _stage(name: str) -> Callable[[Bench], None]:
    from jobs.measure import gpu_machine

    if name in gpu_machine.RUN:
        return gpu_machine.RUN[name]
    from jobs.measure import gpu_stages

    return gpu_stages.RUN[name]


def _end_with_parent() -> None:
    """A worker whose parent was killed must not keep the GPU."""
    os.read(0, 1)
    os._exit(1)


def main() -> int:
    out, deadline, wheels, dry, *stages = sys.argv[1:]
    if not dry and not torch.cuda.is_available():
        print("torch finds no CUDA device; --dry tries the script on a CPU", file=sys.stderr)
        return NO_DEVICE
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = Bench(Path(out), float(deadline), Path(wheels) if wheels else None, bool(dry))
    return 0 if all(run_stage(bench, name) for name in stages) else RESTART


if __name__ == "__main__":
    sys.exit(main())
