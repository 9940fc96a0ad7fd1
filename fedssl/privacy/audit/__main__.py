"""Audit a finished run: `python -m fedssl.privacy.audit RUN_DIR [--twin RUN_DIR] [--shadow RUN_DIR] [--clients]`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.privacy.audit.picture import picture, recovered_picture
from fedssl.privacy.audit.run import audit_run
from fedssl.privacy.audit.run_audit import RunAudit
from fedssl.privacy.audit.table import print_tables
from fedssl.report.rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPLETED, BAD_INPUT, VIOLATED = 0, 2, 3


def main(arguments: list[str]) -> int:
    """Print the bounds and return the exit status: 0 completed, 2 bad input, 3 a guarantee is violated."""
    parser = argparse.ArgumentParser(prog="python -m fedssl.privacy.audit", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of a run, one with canaries")
    parser.add_argument("--twin", type=Path, metavar="RUN_DIR", help="the same run with canaries.flipped turned over")
    parser.add_argument(
        "--shadow", type=Path, action="append", metavar="RUN_DIR", help="the same run with other canaries.coins; repeat"
    )
    parser.add_argument("--clients", action="store_true", help="guess who took part in which round")
    parser.add_argument("--invert", type=int, default=0, metavar="N", help="search for N images by their gradient")
    parser.add_argument("--views", type=int, default=10, help="views of each example")
    parser.add_argument("--max-examples", type=int, default=2000, help="most examples of a group; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="root of what the audit draws")
    parser.add_argument("--out", default="audit.json", help="file in RUN_DIR; the picture's ends in .png")
    options = parser.parse_args(arguments)
    try:
        audit = audit_run(
            options.run_dir,
            options.twin,
            shadows=options.shadow or (),
            clients=options.clients,
            invert=options.invert,
            num_views=options.views,
            max_examples=options.max_examples or None,
            seed=options.seed,
        )
        _write(audit, options.run_dir, options.out)
    except (OSError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    print_tables(audit)
    sys.stdout.write(f"audit: {options.run_dir / options.out}\n")
    return VIOLATED if audit.violated else COMPLETED


def _write(audit: RunAudit, run_dir: Path, name: str) -> None:
    RunDirectory(run_dir).write_text(name, json.dumps(audit.to_dict(), indent=1, allow_nan=False) + "\n")
    path = run_dir / name
    if audit.attacks:
        _save(picture(audit), path.with_suffix(".png"))
    if audit.recovery is not None:
        _save(recovered_picture(audit.recovery), path.with_name(f"{path.stem}_recovered.png"))


def _save(figure: "Figure", path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png", dpi=150)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
