"""`python their_side.py FLAGS`: `vllm bench serve FLAGS`, whose command asks for package metadata that the CPU wheel lacks."""

import sys

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(sys.argv[1:]))
