"""The program's entry. A worker is dispatched before anything else is imported: it shares no module with the server."""

import sys


def main() -> int:
    """Run the command line in `sys.argv`; returns the exit code."""
    if sys.argv[1:2] == ["worker"]:
        from shimmy.engine.worker import main as worker_main

        return worker_main(int(sys.argv[2]))
    if sys.argv[1:2] == ["quantize"]:
        from shimmy.engine.quantize import main as quantize_main

        return quantize_main(sys.argv[2:])
    if sys.argv[1:2] == ["trial"]:
        from shimmy.engine.trial import main as trial_main

        return trial_main(sys.argv[2:])
    from shimmy.cli import main as cli_main

    return cli_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
