"""planet-shard: builds, checks and describes datasets, and draws made chips to try them with.

    planet-shard synth --out CHIPS --count 1000 --kind jpg
    planet-shard build --images CHIPS/train-jpg --labels CHIPS/train.csv --out DATASET
    planet-shard index TARS --labels CHIPS/train.csv
    planet-shard groups DATASET
    planet-shard verify DATASET
    planet-shard info DATASET

What the commands need is imported inside them, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from shards.publish import BuildReport, Part
    from shards.storage import CacheOptions

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_CONTINUE = "interrupted; run the same command again, and it goes on with the first unfinished shard"


class ByteSize(click.ParamType[int]):
    """A number of bytes with an optional unit: 64MiB, 10MB, 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes; fails for anything but a positive number with a known unit."""
        if isinstance(value, int):
            return value
        text = str(value).strip().lower().removesuffix("b")
        digits = text.rstrip("kmgi")
        unit = _UNITS.get(text[len(digits) :])
        try:
            size = round(float(digits) * (unit or 0))
        except (ValueError, OverflowError):
            size = 0
        if size < 1:
            self.fail(f"{value!r} is not a size; write 64MiB, 10MB or a plain number of bytes", param, ctx)
        return size


class PartOf(click.ParamType["Part"]):
    """One part of several: 0/4 to 3/4."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Part:
        """The part; fails for anything else."""
        from shards.errors import ConfigError
        from shards.publish import Part

        number, _, count = str(value).partition("/")
        try:
            return Part(int(number), int(count))
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not a part; write 0/4, 1/4, 2/4 or 3/4", param, ctx)


@contextmanager
def _plain_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Turns what can go wrong into a message on stderr and an exit status, without a traceback."""
    from shards.errors import PlanetError

    try:
        yield
    except BrokenPipeError:
        # The reader of our output has gone, as in `planet-shard info DATASET | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PlanetError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: {error.filename or 'file'}: {error.strerror or error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo(interrupted, err=True)
        sys.exit(130)


def _cores(context: click.Context, parameter: click.Parameter, value: int | None) -> int:
    from shards.workers import available_cores

    return value or available_cores()


def _workers_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        callback=_cores,
        help="Processes that decode.  [default: the cores this process may use]",
    )(command)


_dataset_argument = click.argument("dataset")


def _cache_options(command: Callable[..., None]) -> Callable[..., None]:
    folder = click.option(
        "--cache-dir",
        default="~/.cache/planet-dist",
        show_default=True,
        help="Where the files of a dataset behind a URL are kept.",
    )
    size = click.option(
        "--cache-size", type=ByteSize(), default="64GiB", show_default=True, help="Most bytes in that folder."
    )
    return folder(size(command))


def _cache(folder: str, size: int) -> CacheOptions:
    from shards.storage import CacheOptions

    return CacheOptions(Path(folder), size)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="planet-dist", prog_name="planet-shard")
def main() -> None:
    """Packs satellite chips and their labels into datasets for planet-dist."""
    # Column sums of one chip are too small to share between BLAS threads, and every core has a worker.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@main.command()
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of KEY.jpg or KEY.tif.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns image_name and tags.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the dataset to make.")
@_workers_option
@click.option("--shard-bytes", type=ByteSize(), default="64MiB", show_default=True, help="Most bytes a shard.")
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="Labels, one a line, or TOML with their rules.  [default: Planet's 17 labels]",
)
@click.option("--unlabelled", is_flag=True, help="Pack images without a row, as chips without labels.")
@click.option("--strict", is_flag=True, help="Take label sets that break a rule for problems.")
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Report all problems and stop, or leave bad chips and rows out and list them in rejected.csv.",
)
@click.option("--band-order", metavar="A,B,C", help="What the bands are.  [default: by kind and number]")
@click.option("--part", type=PartOf(), help="Pack the shards I, I+N, ... alone, for planet-shard publish.")
def build(
    images: Path,
    labels: Path | None,
    out: Path,
    workers: int,
    shard_bytes: int,
    vocabulary: Path | None,
    unlabelled: bool,
    strict: bool,
    on_bad: Literal["fail", "skip"],
    band_order: str | None,
    part: Part | None,
) -> None:
    """Packs a folder of chips and a CSV of labels into a dataset.

    Every image is decoded once to check it, and stored as it is. A build that was stopped goes on where it was
    when the same command runs again.

    Parts may run side by side, on one machine or many that see the same folders: --part 0/4 to --part 3/4, and
    planet-shard publish when all have ended. The dataset's bytes are the same.
    """
    with _plain_errors(_CONTINUE):
        from shards.build import BuildOptions, build_part
        from shards.build import build as build_dataset
        from shards.labels import PLANET, read_vocabulary
        from shards.progress import ProgressLine

        options = BuildOptions(
            images=images,
            labels=labels,
            out=out,
            vocabulary=read_vocabulary(vocabulary) if vocabulary else PLANET,
            workers=workers,
            shard_bytes=shard_bytes,
            unlabelled=unlabelled,
            strict=strict,
            on_bad=on_bad,
            band_order=tuple(name.strip() for name in band_order.split(",")) if band_order else None,
        )
        with ProgressLine("packing") as line:
            if part is None:
                report = build_dataset(options, line.update)
            else:
                done = build_part(options, part, line.update)
        if part is None:
            _print_report(out, report)
        else:
            click.echo(
                f"{out}: part {part} done: {done.chips:,} chips in {done.shards} shard(s), {done.reused_shards} "
                f"of them packed before; when all parts are done: planet-shard publish --out {out}"
            )


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder that the parts were built into.")
def publish(out: Path) -> None:
    """Makes a dataset of what all parts of a build have packed (planet-shard build --part I/N)."""
    with _plain_errors("interrupted; run the same command again"):
        from shards.publish import publish as publish_dataset

        _print_report(out, publish_dataset(out))


def _print_report(out: Path, report: BuildReport) -> None:
    manifest = report.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    click.echo(
        f"{out}: {manifest.count:,} chips ({manifest.image.pixels}) in {len(manifest.shards)} shard(s), "
        f"{size / 2**20:,.1f} MiB"
    )
    if report.reused_shards:
        click.echo(f"{report.reused_shards} shard(s) were done before")
    if manifest.sources.repeated_tags:
        click.echo(f"repeated tags: {manifest.sources.repeated_tags:,} row(s), each tag kept once")
    if report.other_files:
        named = ", ".join(report.other_files[:5]) + (", ..." if len(report.other_files) > 5 else "")
        click.echo(f"not images, left alone: {len(report.other_files):,} file(s): {named}")
    _print_breaches(report.breaches)
    if report.problems:
        click.echo(f"left out: {len(report.problems):,} chip(s) and row(s), listed in {out / 'rejected.csv'}:")
        for rule, count in Counter(problem.rule for problem in report.problems).most_common():
            click.echo(f"  {count:,} against the rule: {rule}")


def _print_breaches(breaches: Counter[str]) -> None:
    for rule, count in sorted(breaches.items()):
        click.echo(f"label rule broken: {rule}: {count:,} chip(s)")


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns image_name and tags.")
@click.option(
    "--classes",
    type=click.Choice(["bits", "index"]),
    help="What the number in KEY.cls is: label bits, as planet-shard build writes, or the place of one label.",
)
@click.option("--vocabulary", type=click.Path(path_type=Path), help="As in build.  [default: Planet's 17 labels]")
@click.option("--unlabelled", is_flag=True, help="Take chips without a row or KEY.cls, as chips without labels.")
@_workers_option
def index(
    folder: Path,
    labels: Path | None,
    classes: Literal["bits", "index"] | None,
    vocabulary: Path | None,
    unlabelled: bool,
    workers: int,
) -> None:
    """Makes a dataset of the WebDataset tars in DIR, where they lie.

    Every image is decoded once to check it. Beside each tar comes an index, and a manifest.json; the tars stay as they
    are. Members other than KEY.jpg, KEY.tif and KEY.cls are passed over.
    """
    with _plain_errors():
        from shards.indexing import IndexOptions, index_tars
        from shards.labels import PLANET, read_vocabulary
        from shards.progress import ProgressLine

        words = read_vocabulary(vocabulary) if vocabulary else PLANET
        options = IndexOptions(folder, labels, words, classes, unlabelled, workers)
        with ProgressLine("indexing") as line:
            report = index_tars(options, line.update)
        manifest = report.manifest
        click.echo(f"{folder}: {manifest.count:,} chips ({manifest.image.pixels}) in {len(manifest.shards)} shard(s)")
        if report.other_members:
            click.echo(f"other members, passed over: {report.other_members:,}")
        _print_breaches(report.breaches)


@main.command()
@_dataset_argument
@_workers_option
@click.option("--strict", is_flag=True, help="Take label sets that break a rule for problems.")
@_cache_options
def verify(dataset: str, workers: int, strict: bool, cache_dir: str, cache_size: int) -> None:
    """Checks every file, digest, tar member, image and label set of DATASET; exit status 1 if any is wrong.

    DATASET is a folder, or the URL of one (s3://, gs://, https://, ...).
    """
    with _plain_errors():
        from shards.location import redact
        from shards.progress import ProgressLine
        from shards.verify import verify as verify_dataset

        with ProgressLine("checking") as line:
            report = verify_dataset(
                dataset, workers=workers, strict=strict, cache=_cache(cache_dir, cache_size), progress=line.update
            )
        shown = redact(dataset, dataset)
        _print_breaches(report.breaches)
        for problem in report.problems:
            click.echo(f"{problem}; the rule: {problem.rule}; {problem.remedy}", err=True)
        if report.problems:
            click.echo(f"{shown}: {len(report.problems):,} problem(s)", err=True)
            sys.exit(1)
        click.echo(f"{shown}: {report.chips:,} chips, all sound")


@main.command()
@_dataset_argument
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@_cache_options
def info(dataset: str, as_json: bool, cache_dir: str, cache_size: int) -> None:
    """Shows what DATASET holds: counts, labels with their frequencies, bands, sizes, breaches of label rules.

    DATASET is a folder, or the URL of one (s3://, gs://, https://, ...).
    """
    with _plain_errors():
        from shards.reader import Dataset

        opened = Dataset(dataset, _cache(cache_dir, cache_size))
        if as_json:
            click.echo(opened.manifest.to_bytes().decode(), nl=False)
            return
        from rich.console import Console

        from shards.summary import dataset_tables, rule_breaches

        manifest = opened.manifest
        breaches = rule_breaches(manifest.vocabulary, opened.index())
        Console().print(dataset_tables(opened.shown, manifest, breaches))


@main.command()
@_dataset_argument
@_workers_option
def groups(dataset: str, workers: int) -> None:
    """Finds the chips of DATASET that show the same ground or lie side by side, and stores them as groups.

    They go into DATASET/groups.json. data.split=kfold-grouped:K/I reads it, and keeps related chips in one fold.
    What counts as related stands in docs/format.md.
    """
    with _plain_errors("interrupted; nothing was written"):
        from shards.groups import counts, make_groups, writable_folder, write_groups
        from shards.progress import ProgressLine
        from shards.reader import Dataset

        opened = Dataset(writable_folder(dataset))
        with ProgressLine("finding") as line:
            found = make_groups(opened, workers, line.update)
        path = write_groups(dataset, found)
        figure = counts(found)
        click.echo(
            f"{path}: {len(opened):,} chips; related pairs: {figure['same']:,} of equal pixels, {figure['overlap']:,} "
            f"that overlap, {figure['border']:,} side by side; {figure['chips']:,} chips in {figure['groups']:,} "
            f"groups, {figure['largest']:,} in the largest"
        )
        if found.left_out:
            click.echo(f"left out, for they would have made a group too large: {found.left_out:,} pair(s)")


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to draw into.")
@click.option("--count", required=True, type=click.IntRange(min=1), help="Number of chips.")
@click.option("--kind", type=click.Choice(["jpg", "tif", "both"]), default="jpg", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def synth(out: Path, count: int, kind: Literal["jpg", "tif", "both"], seed: int) -> None:
    """Draws made chips with labels, in the layout of the Kaggle competition; the same for the same seed."""
    with _plain_errors():
        from shards.progress import ProgressLine
        from shards.synth import write_chips

        with ProgressLine("drawing") as line:
            write_chips(out, count, kind, seed, progress=lambda done: line.update(done, count))
        click.echo(f"{out}: {count:,} made chips")


if __name__ == "__main__":
    main()
