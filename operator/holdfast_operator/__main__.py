# SPDX-License-Identifier: Apache-2.0
"""``holdfast-operator``. Heavy imports come late, so that a missing extra is named and not a traceback."""

import sys


def main() -> int:
    try:
        from holdfast_operator.main import main as run
    except ModuleNotFoundError as error:
        print(  # noqa: T201
            f"holdfast-operator needs the package {error.name}: install holdfast[operator]", file=sys.stderr
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
