"""The command line, ``hpdval``; each command imports what it needs, so help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import hpdval
from hpdval.commands import data, errors, joined, notebooks, predict, report, runs, stop, sweep, train
from hpdval.errors import HpdvalError
from hpdval.stopping import terminated_as_interrupted

COMMANDS = (notebooks, sweep, train, stop, predict, report, errors, runs, data)  # in the order of the help


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each names the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog="hpdval", description="Class-imbalanced multi-label classification with CLIP."
    )
    parser.add_argument("--version", action="version", version=f"hpdval {hpdval.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    doctor = commands.add_parser("doctor", help="what is installed, which device and caches, what is missing")
    doctor.set_defaults(function=_doctor)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error on purpose is one line on standard error and exit code 2."""
    options = build_parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    try:
        with terminated_as_interrupted():
            options.function(options)
        return 0
    except HpdvalError as error:
        if options.debug:
            raise
        print(f"hpdval: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder that cannot be made, a disk that is full: nothing to debug
        if options.debug:
            raise
        print(f"hpdval: {error.filename or 'system error'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hpdval: interrupted; the same command continues", file=sys.stderr)
        return 130


def _doctor(options: argparse.Namespace) -> None:
    from hpdval.doctor import examine

    print(examine())


if __name__ == "__main__":
    sys.exit(main())
