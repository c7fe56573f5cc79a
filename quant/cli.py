"""`burrstone quantize`: flags only. What they do is loaded when it is asked for, so that other commands need not wait."""

import argparse
from typing import Any

_DESCRIPTION = """\
Make an INT8 checkpoint of a model, or judge one against its original.

  burrstone quantize MODEL -o OUT --scheme w8a8-int8 --calibration chats.jsonl
  burrstone quantize eval REFERENCE CANDIDATE --text held-out.jsonl

MODEL is a Hugging Face folder, a hub id, or the embedded model's name. One layer is in memory at a time. A run that was
stopped or killed goes on where it was when the same command is given again."""

_EPILOG = """\
schemes (--scheme; `+kv-int8` may be added to any):
  w8a8-int8     weights and activations; vLLM on CUDA and on CPUs. The one to start with
  w8a16-int8    weights alone; vLLM on CUDA
  bnb-int8      LLM.int8() of bitsandbytes, which keeps outlier columns in 16 bits
  neuron-int8   keys of NxD Inference for Inferentia2 and Trainium1; UNVERIFIED there
  kv-int8       no weights: the KV cache in INT8, on CUDA alone

methods (--method), each slower than the one before it; what a model needs is what its verdict says:
  rtn               round to nearest; needs no data
  smoothquant       first move outliers of activations into the weights
  gptq              let later columns make up for the rounding of earlier ones
  smoothquant+gptq  both

text files: .txt, .md, or .jsonl with {"text"}, {"messages"} or {"prompt", "completion"} a line; a folder of them; or
`smoke`, a built-in set that shows that the machinery runs and nothing more.

exit codes: 0 done, 1 the verdict is a fail, 2 wrong usage, model or data, 3 the disk is full, 130 stopped (Ctrl-C, SIGTERM)
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "quantize",
        help="make an INT8 checkpoint, and judge it",
        usage="burrstone quantize MODEL -o OUT [--FLAG VALUE ...]\n"
        "       burrstone quantize eval REFERENCE CANDIDATE --text PATH [--FLAG VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="MODEL", help="what to quantize; or: eval REFERENCE CANDIDATE")
    make = parser.add_argument_group("quantizing")
    make.add_argument("-o", "--out", metavar="OUT", help="folder to make; must not exist")
    make.add_argument("--scheme", metavar="NAME", help="how weights are stored [w8a8-int8]")
    make.add_argument("--method", metavar="NAME", help="how they are rounded [smoothquant+gptq]")
    make.add_argument(
        "--calibration", metavar="PATH", help="text that the model is watched on; `smoke` for the built-in"
    )
    make.add_argument("--observer", metavar="NAME", help="scales by absmax, percentile or mse [absmax]")
    make.add_argument("--granularity", metavar="NAME", help="scales per-channel or per-tensor [per-channel]")
    make.add_argument("--strength", type=float, metavar="A", help="of smoothing, 0 to 1 [searched for each unit]")
    make.add_argument("--dampening", type=float, metavar="D", help="of GPTQ's Hessian [0.01]")
    make.add_argument("--keep", action="append", metavar="PATTERN", help="modules left as they are: '*.layers.0.*'")
    make.add_argument("--quantize-lm-head", action="store_true", help="the output head too; a tied one is untied")
    make.add_argument(
        "--mixed-precision",
        metavar="TEXT",
        help="leave the worst units in 16 bits until the verdict on this text passes",
    )
    make.add_argument("--restart", action="store_true", help="drop what a stopped run left in OUT.partial")
    judge = parser.add_argument_group("judging")
    judge.add_argument("--text", metavar="PATH", help="text that both models are measured on")
    judge.add_argument(
        "--cases", metavar="FILE", help=".jsonl of your task: prompt, and completion or choices with answer"
    )
    judge.add_argument("--margin-perplexity", type=float, metavar="R", help="relative loss allowed [0.02]")
    judge.add_argument("--margin-kl", type=float, metavar="NATS", help="mean KL a token allowed [0.02]")
    judge.add_argument("--margin-task", type=float, metavar="S", help="share of cases that may be lost [0.02]")
    both = parser.add_argument_group("both")
    both.add_argument("--rows", type=int, metavar="N", help="rows of text [128; judging 64, at least 8]")
    both.add_argument("--row-tokens", type=int, metavar="N", help="tokens in each row [512]")
    both.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 [a GPU where there is one]")
    both.add_argument("--json", action="store_true", help="print the result as JSON")
    names = tuple(name for action in parser._actions for name in action.option_strings)
    parser.set_defaults(run=_run, flags=names)


def _run(arguments: argparse.Namespace) -> int:
    from burrstone.quant.commands import run

    return run(arguments)
