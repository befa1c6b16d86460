"""The commands of `launch.py` that need this package alone: demo, data, generate."""

import argparse
import sys

from distgan.command_line import (
    Commands,
    add_command,
    add_overrides,
    add_storage_overrides,
    configure_storage,
    storage_options,
)
from distgan.errors import UserError

VERIFY_DETAILS = """
Reads and decodes everything, in worker processes. Ends with exit code 0 if the data
set is sound; else with 2, after a line for each problem: shard, sample, what is wrong."""

SHOW_DETAILS = """
The picture holds a film strip a clip, of clips spread over the whole data set."""

INDEX_DETAILS = """
For WebDataset tars that prepare did not make, or whose manifest.json was lost. They
must be named shard-*.tar and hold KEY.mp4 or KEY.npy (and optionally KEY.json), with
square clips of one size and length."""


def add_demo(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `demo`."""
    demo = add_command(
        commands, "demo", "render small videos, train on them, show what came out", _demo,
        example="demo --output demo",
    )  # fmt: skip
    demo.add_argument(
        "--output", default="demo", help="folder or URL for all of it (default: demo)"
    )
    add_overrides(demo)


def add_data(commands: "Commands[argparse.ArgumentParser]") -> None:
    """`data` with commands of its own, which look at a data set that is there."""
    data = add_command(
        commands, "data", "check, show or index a data set", None,
        example="data verify --data data/mine",
    )  # fmt: skip
    inner = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    text = "check every byte and clip of a data set against its manifest"
    verify = add_command(
        inner, "verify", text, _data_verify, details=VERIFY_DETAILS,
        example="data verify --data s3://bucket/data",
    )  # fmt: skip
    text = "print a data set's facts and draw some of its clips"
    show = add_command(
        inner, "show", text, _data_show, details=SHOW_DETAILS,
        example="data show --data data/mine --output data_sheet.png",
    )  # fmt: skip
    text = "write the manifest of shards that have none"
    index = add_command(
        inner, "index", text, _data_index, details=INDEX_DETAILS,
        example="data index --data data/others",
    )  # fmt: skip

    for parser in (verify, show, index):
        parser.add_argument("--data", required=True, help="folder or URL of the data set")
    for parser in (verify, index):
        parser.add_argument("--processes", type=int, default=0, metavar="N", help="worker "
                            "processes; 1 works without any (default: one a CPU core)")  # fmt: skip
    show.add_argument("--output", default="data_sheet.png", help="PNG file or URL for the picture "
                      "(default: data_sheet.png)")  # fmt: skip
    for parser in (verify, show, index):
        add_storage_overrides(parser)


def add_generate(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Adds `generate`."""
    generate = add_command(
        commands, "generate", "make new videos with a trained generator", _generate,
        example="generate --run runs/small-64-0 --output out --num 8 --seed 100",
    )  # fmt: skip
    generate.add_argument(
        "--run", required=True, help="run folder or URL, or an exported generator"
    )
    generate.add_argument("--output", required=True, help="folder or URL for the new videos")
    generate.add_argument("--num", type=int, default=8, help="how many videos (default: 8)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the first video; the next "
                          "ones count up from it (default: 0)")  # fmt: skip
    generate.add_argument("--truncation", type=float, default=1.0, help="0 to 1: less than 1 gives "
                          "safer, more alike videos (default: 1)")  # fmt: skip
    generate.add_argument("--input", help="folder or URL with videos whose first frames are "
                          "given, for a generator trained with "
                          "conditioning.task=prediction")  # fmt: skip
    generate.add_argument("--show-attention", action="store_true", help="also draw where chosen "
                          "tokens of the first video look, for each attention layer of the "
                          "generator")  # fmt: skip
    generate.add_argument("--attention-at", nargs="+", type=_place, metavar="FRAME,ROW,COLUMN",
                          help="which tokens --show-attention chooses: those over these pixels, "
                          "counted from 0 (default: some that stand out)")  # fmt: skip
    add_storage_overrides(generate)


def _place(text: str) -> tuple[int, int, int]:
    """FRAME,ROW,COLUMN."""
    try:
        frame, row, column = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not like 0,16,16 (frame,row,column)"
        ) from error
    return frame, row, column


def _demo(arguments: argparse.Namespace) -> int:
    from distgan import storage
    from distgan.config_loading import load_config
    from distgan.demo_run import run_demo
    from distgan.paths import absolute

    storage.configure(load_config("demo", overrides=arguments.overrides).storage)
    return run_demo(absolute(arguments.output), arguments.overrides)


def _data_verify(arguments: argparse.Namespace) -> int:
    from distgan.data.verify import verify
    from distgan.paths import absolute

    configure_storage(arguments)
    folder = absolute(arguments.data)
    manifest, problems = verify(folder, processes=arguments.processes)
    for problem in problems:
        print(problem)
    facts = f"{manifest.samples} samples in {len(manifest.shards)} shards"
    if not problems:
        print(f"sound: {facts} of {folder} are what the manifest says")
        return 0
    remedy = (
        "copy the files named above again from where they were prepared (remove those that the "
        "manifest does not name), or prepare the data set again into an empty folder"
    )
    end = f"launch.py data verify: {len(problems)} problems in {folder} ({facts}); {remedy}"
    print(end, file=sys.stderr)
    return UserError.exit_code


def _data_show(arguments: argparse.Namespace) -> int:
    from distgan.data.show import show
    from distgan.paths import absolute

    configure_storage(arguments)
    print(show(absolute(arguments.data), absolute(arguments.output)))
    return 0


def _data_index(arguments: argparse.Namespace) -> int:
    from distgan.data.indexing import index
    from distgan.paths import absolute

    configure_storage(arguments)
    folder = absolute(arguments.data)
    manifest = index(folder, processes=arguments.processes)
    clip = manifest.clip
    print(f"indexed {manifest.samples} clips in {len(manifest.shards)} shards of {folder}: "
          f"{clip.stored_frames} frames of {clip.resolution}x{clip.resolution}, "
          f"{clip.clip_format}")  # fmt: skip
    print(f"look at them with: python launch.py data show --data {folder}")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from distgan.generate import generate
    from distgan.paths import absolute

    made = generate(
        absolute(arguments.run),
        absolute(arguments.output),
        num=arguments.num,
        seed=arguments.seed,
        truncation=arguments.truncation,
        input_folder=absolute(arguments.input) if arguments.input else None,
        storage_options=storage_options(arguments),
        show_attention=arguments.show_attention,
        attention_at=arguments.attention_at,
    )
    print(made.summary())
    return 0
