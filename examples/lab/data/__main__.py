# SPDX-License-Identifier: MIT
"""Make shards of tokens: ``python -m examples.lab.data fineweb --tokens 100M --to DIR``.

What was interrupted goes on when the same command is given again.
"""

import argparse
import pathlib
import re
import sys

from .bpe import load_tokenizer
from .errors import DataError
from .stream import HOSTED, documents, prepare

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def number(text):
    """A number of tokens such as 5000, 100M or 1.5B."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 5000 or 100M")
    return round(float(match[1]) * UNITS[match[2]])


def main(arguments=None):
    """Exit status."""
    parser = argparse.ArgumentParser("python -m examples.lab.data", description=__doc__)
    add = parser.add_argument
    add("source", choices=[*HOSTED, "folder"], help="documents; folder: the files below --from")
    add("--from", dest="folder", help="folder of text files")
    add("--to", required=True, help="folder for the shards")
    add("--tokens", type=number, required=True, help="to train on, such as 100M")
    add("--shard", type=number, default=10**8, help="tokens of a shard (default: 100M)")
    add("--validation", type=number, help="tokens to validate on (default: a tenth, at most 10.5M)")
    add("--tokenizer", help="file: .tiktoken, .json or .model (default: GPT-2's ranks, if found)")
    args = parser.parse_args(arguments)
    if (args.source == "folder") != (args.folder is not None):
        parser.error("--from names the folder of the source 'folder'; give both or neither")
    name = args.source if args.folder is None else pathlib.Path(args.folder).resolve().name
    try:
        state = prepare(
            documents(args.source, args.folder),
            load_tokenizer(args.tokenizer),
            args.to,
            name=name,
            tokens=args.tokens,
            shard=args.shard,
            validation=args.validation,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.to}: {len(state['train'])} shards to train on, {len(state['val'])} to validate on"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
