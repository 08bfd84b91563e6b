"""`minirl equations`. It stands apart from the other commands, which need torch."""

from __future__ import annotations

import argparse

from minirl.testing.index import markdown_index, show_equation, show_index


def command_equations(args: argparse.Namespace) -> None:
    """Print the index, or one equation."""
    if args.name is not None:
        print(show_equation(args.name))
    elif args.markdown:
        print(markdown_index(), end="")
    else:
        print(show_index())
