"""Builds a dataset: scan, plan, pack in parallel, and write the shards in order."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shards.assemble import band_names, write_shard
from shards.errors import ConfigError, DatasetError, DecodeError, InputError, Problem
from shards.labels import Vocabulary
from shards.layout import ShardPlan, chunks, fingerprint, plan_shards
from shards.packing import Chunk, Packed, decode_with_offset, form_of, pack_chunk
from shards.pixels import PixelFormat
from shards.publish import WHOLE, BuildReport, Inventory, OnBad, Part, complete, usable, write_inventory
from shards.sources import Record, Scan, scan_sources
from shards.unfinished import FinishedShard, Workplace, check_output, open_workplace
from shards.workers import map_in_order, worker_pool

PROBED_CHIPS = 101
MOST_THREADS = 4  # decoding leaves the interpreter lock alone; beyond these, what is left of Python holds them up
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        images, labels, out: the folder of chips, the CSV or None, and the dataset's folder.
        workers: processes that read, check and pack; 1 packs in this process.
        shard_bytes: the size that a tar stays within.
        unlabelled: pack images without a row.
        strict: a label set that breaks a rule is a problem.
        on_bad: "fail" reports all problems and makes no dataset, "skip" leaves bad chips and rows out.
        band_order: what each band is, or None for the usual names.
    """

    images: Path
    labels: Path | None
    out: Path
    vocabulary: Vocabulary
    workers: int = 1
    shard_bytes: int = 64 * 1024 * 1024
    unlabelled: bool = False
    strict: bool = False
    on_bad: OnBad = "fail"
    band_order: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PartReport:
    """What a part has packed: its shards, how many of them were done before, and the chips in all of them."""

    part: Part
    shards: int
    reused_shards: int
    chips: int


@dataclass(frozen=True)
class _Job:
    scan: Scan
    kind: str
    form: PixelFormat
    key_bytes: int
    plans: list[ShardPlan]
    part: Part

    @property
    def own_plans(self) -> list[ShardPlan]:
        return self.plans[self.part.number :: self.part.count]

    def chunks(self, plan: ShardPlan) -> Iterator[Chunk]:
        return chunks(plan, self.kind, self.form, self.key_bytes)

    def fingerprint(self, plan: ShardPlan) -> str:
        return fingerprint(plan, self.kind, self.form, self.key_bytes)


def build(options: BuildOptions, progress: Progress = lambda done, total: None) -> BuildReport:
    """Builds a dataset, or goes on with an unfinished one.

    The dataset's bytes depend on the images, the labels and the options that shape it: not on the number of
    workers, the day, or how often the build was interrupted.

    Args:
        progress: called with the chips done and their number.

    Raises:
        InputError: problems in the input, all of them; under on_bad="skip" only those that leave no dataset.
        DatasetError: `out` holds something else, cannot be written, or its disk is full.
        ConfigError: the options contradict each other or the images.
        PlanetError: a worker process died.
    """
    job = _prepare(options, WHOLE, progress)
    with _writing(options, job) as place:
        packed = _pack(place, job, options, progress)
        ordered = [packed.shards[plan.name] for plan in job.plans]
        return complete(place, _inventory(options, job), ordered, packed.reused_shards)


def build_part(options: BuildOptions, part: Part, progress: Progress = lambda done, total: None) -> PartReport:
    """Packs one part of a dataset, for shards.publish.publish once all parts have ended; parts may run side by side.

    Each part reads all names and sizes, and opens the images of its own shards alone.

    Args:
        options: the same for every part, but for `workers`.
        progress: called with the chips done and their number, of this part.

    Raises:
        as `build` does, for this part's chips and for everything that names and rows show.
    """
    job = _prepare(options, part, progress)
    with _writing(options, job) as place:
        write_inventory(place, _inventory(options, job))
        packed = _pack(place, job, options, progress)
        problems = [problem for shard in packed.shards.values() for problem in shard.problems]
        if problems and options.on_bad == "fail":
            raise InputError(problems)
    chips = sum(shard.shard.count for shard in packed.shards.values())
    return PartReport(part, len(packed.shards), packed.reused_shards, chips)


def _prepare(options: BuildOptions, part: Part, progress: Progress) -> _Job:
    if options.labels is None and not options.unlabelled:
        raise ConfigError("no labels: give a CSV as --labels, or pack the images without with --unlabelled")
    check_output(options.out, options.images, options.labels)
    scan = _scan(options)
    form = common_form(scan.records, scan.kind)
    if form is None:
        raise InputError(scan.problems + _decode_problems(scan.records, scan.kind))
    _check_bands(options, form)
    key_bytes = max(len(record.key.encode()) for record in scan.records)
    job = _Job(scan, scan.kind, form, key_bytes, plan_shards(scan.records, options.shard_bytes), part)
    if scan.fatal or (scan.problems and options.on_bad == "fail"):
        raise InputError(scan.problems + _check_only(job, options.workers, progress))
    return job


@contextmanager
def _writing(options: BuildOptions, job: _Job) -> Iterator[Workplace]:
    try:
        with open_workplace(options.out, options.images, options.labels, shared=job.part.count > 1) as place:
            yield place
    except OSError as error:
        raise _write_error(error, options.out, sum(plan.bytes for plan in job.own_plans)) from error


def _inventory(options: BuildOptions, job: _Job) -> Inventory:
    scan = job.scan
    return Inventory(
        kind=job.kind,
        form=job.form,
        band_order=tuple(options.band_order or band_names(job.kind, job.form.bands)),
        vocabulary=options.vocabulary,
        labels_sha256=scan.labels_sha256,
        repeated_tags=scan.repeated_tags,
        breaches=dict(scan.breaches),
        other_files=scan.other_files,
        problems=scan.problems,
        on_bad=options.on_bad,
        shards=[(plan.name, job.fingerprint(plan)) for plan in job.plans],
        parts=job.part.count,
    )


def _scan(options: BuildOptions) -> Scan:
    try:
        return scan_sources(
            options.images,
            options.labels,
            options.vocabulary,
            unlabelled=options.unlabelled,
            strict=options.strict,
        )
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; give a readable folder and CSV as --images and --labels"
        ) from error


def common_form(records: Sequence[Record], kind: str) -> PixelFormat | None:
    """The most common form among up to 101 evenly spaced chips that decode, the first of equals.

    Where none of these decodes, the first chip that does sets the form; None if none does.
    """
    step = max(1, -(-len(records) // PROBED_CHIPS))
    found = Counter(form for record in records[::step] if (form := _form(record, kind)))
    if found:
        return found.most_common(1)[0][0]
    return next((form for record in records if (form := _form(record, kind))), None)


def _form(record: Record, kind: str) -> PixelFormat | None:
    try:
        pixels, _ = decode_with_offset(Path(record.path).read_bytes(), kind)
    except (OSError, DecodeError):
        return None
    return form_of(pixels)


def _decode_problems(records: Sequence[Record], kind: str) -> list[Problem]:
    chunk = Chunk(tuple(records), kind, PixelFormat(1, 1, 1, "uint8"), key_bytes=1)
    return pack_chunk(chunk).problems


def _check_bands(options: BuildOptions, form: PixelFormat) -> None:
    order = options.band_order
    if order is not None and (len(order) != form.bands or len(set(order)) != len(order) or not all(order)):
        raise ConfigError(
            f"--band-order {','.join(order)} names {len(order)} bands, the images have {form.bands}; "
            "name each band once, separated by commas"
        )


def _check_only(job: _Job, workers: int, progress: Progress) -> list[Problem]:
    """Decodes every chip and writes nothing: what else is wrong beside what the scan has found."""
    with worker_pool(workers, most_threads=MOST_THREADS) as pool:
        packed_chunks = _packed_chunks(pool, job, job.own_plans, workers, progress)
        return [problem for packed in packed_chunks for problem in packed.problems]


@dataclass(frozen=True)
class _PackedShards:
    shards: dict[str, FinishedShard]
    reused_shards: int


def _pack(place: Workplace, job: _Job, options: BuildOptions, progress: Progress) -> _PackedShards:
    done = {plan.name: place.finished(plan.name, job.fingerprint(plan)) for plan in job.own_plans}
    finished = {name: shard for name, shard in done.items() if shard and usable(shard, options.on_bad)}
    reused_shards = len(finished)
    todo = [plan for plan in job.own_plans if plan.name not in finished]
    _check_space(options.out, sum(plan.bytes for plan in todo))
    with worker_pool(options.workers, most_threads=MOST_THREADS) as pool:
        packed = _packed_chunks(pool, job, todo, options.workers, progress)
        for plan in todo:
            pieces = islice(packed, sum(1 for _ in job.chunks(plan)))
            shard, index = write_shard(place, plan.name, job.fingerprint(plan), pieces, job.form.bands)
            if usable(shard, options.on_bad):
                place.finish(shard, index)
            finished[plan.name] = shard
    return _PackedShards(finished, reused_shards)


def _packed_chunks(
    pool: Executor, job: _Job, todo: Sequence[ShardPlan], workers: int, progress: Progress
) -> Iterator[Packed]:
    """The chunks of all shards in order: one stream, so that workers have work across a shard's end."""
    total = sum(len(plan.records) for plan in job.own_plans)
    done = total - sum(len(plan.records) for plan in todo)
    progress(done, total)
    work = (chunk for plan in todo for chunk in job.chunks(plan))
    for packed in map_in_order(pool, pack_chunk, work, 2 * workers + 2):
        done += len(packed.index) + len(packed.problems)
        progress(done, total)
        yield packed


def _check_space(out: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(out).free
    if needed_bytes > free_bytes:
        raise DatasetError(
            f"{out}: {_mebibytes(needed_bytes)} to be written and {_mebibytes(free_bytes)} free on its disk; "
            "free some space and run the same command again, or give another --out"
        )


def _write_error(error: OSError, out: Path, needed_bytes: int) -> DatasetError:
    return DatasetError(
        f"{error.filename or out}: {error.strerror}; the dataset takes {_mebibytes(needed_bytes)} in all; make the "
        "place writable or free some space and run the same command again, which goes on where it stopped, "
        "or give another --out"
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
