"""The program `tinylatent`, also as `python -m tinylatent`."""

import sys


def main() -> int:
    """Runs the command that was typed and returns the exit status; see `tinylatent.cli.main.main`.

    Little is imported before, so that Ctrl-C is a line from the start.
    """
    try:
        from tinylatent.cli.main import main as run
    except KeyboardInterrupt:
        print("\ntinylatent: interrupted before it began", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
