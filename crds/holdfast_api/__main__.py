# SPDX-License-Identifier: Apache-2.0
"""``python -m holdfast_api check FILE...``: would the API server take these manifests?"""

import argparse
import sys
from pathlib import Path

from holdfast_api.manifests import errors_in
from holdfast_api.schema import NOWHERE


def main(arguments: list[str] | None = None) -> int:
    """0 when every file is good, else 1 and a line for each error: ``file: object: field: message``."""
    parser = argparse.ArgumentParser(
        prog="python -m holdfast_api", description="Holdfast's objects, in files"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="say all that is wrong with manifests, as the API server would")
    check.add_argument("file", nargs="+", type=Path)
    wrong = 0
    for path in parser.parse_args(arguments).file:
        for named, error in errors_in(path):
            parts = [str(path), named, "" if error.field == NOWHERE else error.field, error.message]
            sys.stdout.write(": ".join(part for part in parts if part) + "\n")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
