"""Loaders that benchmarks/loader.py runs side by side, each in a process of its own.

    python benchmarks/loader_contestants.py NAME FOLDER WORKERS

FOLDER holds jpg/ and tif/ (datasets), chips/train-jpg/ (files), and what a peer makes of them for itself. The process
says what it is, then runs an epoch for each line that it's given, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch

from shards.pixels import decode
from shards.reader import Dataset

BATCH = 128
RING = 4  # batches that the stream holds by default
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Ready:
    """A loader.

    Attributes:
        epoch: gives the lengths of an epoch's batches, by its number and how many are wanted on end (of those that
            are done in no time; others give one).
        batch_bytes: that its batches take.
        libraries: whose versions matter.
        prepare: what is done before the clock starts.
    """

    epoch: Callable[[int, int], Iterable[int]]
    batch_bytes: int = 0
    libraries: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None


def shuffled(count: int, epoch: int, passes: int = 1) -> list[np.ndarray]:
    """Ids of some epochs on end, in whole batches."""
    ids = np.concatenate([np.random.default_rng([7, epoch, turn]).permutation(count) for turn in range(passes)])
    return [ids[start : start + BATCH] for start in range(0, len(ids) - BATCH + 1, BATCH)]


def bare_decoder(folder: Path, threads: int) -> Ready:
    """simplejpeg into a preallocated batch, from bytes in memory; each thread decodes its share of an epoch."""
    dataset = Dataset(folder / "jpg")
    images = [bytes(dataset.image(chip_id)) for chip_id in range(len(dataset))]
    form = dataset.manifest.image
    out_BHWC = np.zeros((BATCH, form.height, form.width, 3), np.uint8)
    four = simplejpeg.decode_jpeg_header(images[0])[2] in ("CMYK", "YCCK")
    spare = [np.empty((form.height, form.width, 4), np.uint8) for _ in range(threads)]

    def share(part: int, order: list[int]) -> int:
        for place, chip_id in enumerate(order[part::threads]):
            if four:  # of which the stream makes RGB, and this does not
                simplejpeg.decode_jpeg(images[chip_id], "CMYK", buffer=spare[part])
            else:
                simplejpeg.decode_jpeg(images[chip_id], "RGB", buffer=out_BHWC[(place * threads + part) % BATCH])
        return len(order[part::threads])

    def epoch(number: int, passes: int) -> Iterator[int]:
        order = np.concatenate(shuffled(len(images), number)).tolist()
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(lambda part: share(part, order), range(threads))

    return Ready(epoch, libraries=("simplejpeg",))


def stream(folder: Path, threads: int, kind: str = "jpg", cached: bool = False) -> Ready:
    """planet_dist.stream to batches in host memory."""
    from planet_dist.host_cache import HostCache
    from planet_dist.stream import Caches, DecodedBatches, FixedSteps

    dataset = Dataset(folder / kind)
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    caches = Caches(host=HostCache(folder / "cache", dataset, 2**36)) if cached else Caches()
    decoded = DecodedBatches(dataset, targets_NC, BATCH, threads=threads, prefetch_batches=RING - 1, caches=caches)

    def open_anew() -> None:
        decoded.dataset = Dataset(folder / kind)  # its tars not mapped yet, as in a first epoch
        decoded.dataset.index()

    def epoch(number: int, passes: int) -> Iterator[int]:
        return (len(batch.ids_B) for batch in decoded(FixedSteps(shuffled(len(dataset), number, passes))()))

    return Ready(epoch, sum(slot.nbytes for slot in decoded.ring), prepare=open_anew)


def stream_float(folder: Path, threads: int) -> Ready:
    """planet_dist.stream and augment, on the CPU, to float32 224x224: mirrored at random, ImageNet's normalisation."""
    from planet_dist.augment import Preprocess
    from planet_dist.config import AugmentConfig, DataConfig
    from planet_dist.stream import DecodedBatches, FixedSteps

    torch.set_num_threads(1)
    dataset = Dataset(folder / "jpg")
    manifest = dataset.manifest
    targets_NC = manifest.vocabulary.matrix(dataset.index()["labels"])
    data = DataConfig(size=224, normalise="imagenet")
    preprocess = Preprocess(data, manifest.image.pixels, manifest.mean, manifest.std, augment=AugmentConfig(flip=True))
    decoded = DecodedBatches(dataset, targets_NC, BATCH, threads=threads, prefetch_batches=RING - 1)

    def epoch(number: int, passes: int) -> Iterator[int]:
        for batch in decoded(FixedSteps(shuffled(len(dataset), number, passes))()):
            yield len(preprocess.train(batch.images_BHWC, batch.ids_B, number))

    return Ready(epoch, sum(slot.nbytes for slot in decoded.ring))


def copying(folder: Path, threads: int) -> Ready:
    """NumPy's copy of the cache's bytes, whole batches in order, into as many batches as the stream has."""
    from planet_dist.host_cache import HostCache

    dataset = Dataset(folder / "jpg")
    chips_NHWC = HostCache(folder / "cache", dataset, 2**36)._chips_NHWC
    ring = [np.zeros((BATCH, *chips_NHWC.shape[1:]), np.uint8) for _ in range(RING)]

    def epoch(number: int, passes: int) -> Iterator[int]:
        starts = [*range(0, len(dataset) - BATCH + 1, BATCH)] * passes
        for place, start in enumerate(starts):
            np.copyto(ring[place % RING], chips_NHWC[start : start + BATCH])
            yield BATCH

    return Ready(epoch, libraries=("numpy",))


def bare_tiff(folder: Path, threads: int) -> Ready:
    """Reads each TIFF's bytes out of its tar and copies its pixels into a preallocated batch."""
    dataset = Dataset(folder / "tif")
    index_N, form = dataset.index(), dataset.manifest.image
    starts = np.cumsum([0] + [shard.count for shard in dataset.manifest.shards])
    files = [os.open(dataset.root / f"{shard.name}.tar", os.O_RDONLY) for shard in dataset.manifest.shards]
    shards_N = np.searchsorted(starts, np.arange(len(dataset)), side="right") - 1
    places = [
        (files[shard], int(row["size"]), int(row["offset"]), int(row["pixels"]))
        for shard, row in zip(shards_N, index_N, strict=True)
    ]
    ring = [np.zeros((BATCH, form.height, form.width, form.bands), form.dtype) for _ in range(RING)]

    def share(part: int, order: list[int]) -> int:
        for place, chip_id in enumerate(order[part::threads]):
            batch, row = divmod(place * threads + part, BATCH)
            out_HWC = ring[batch % RING][row]
            file, size, offset, inside = places[chip_id]
            data = os.pread(file, size, offset)
            out_HWC[...] = np.frombuffer(data, form.dtype, out_HWC.size, inside).reshape(out_HWC.shape)
        return len(order[part::threads])

    def epoch(number: int, passes: int) -> Iterator[int]:
        order = np.concatenate(shuffled(len(places), number, passes)).tolist()
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(lambda part: share(part, order), range(threads))

    return Ready(epoch, libraries=("numpy",))


class Files(torch.utils.data.Dataset[np.ndarray]):
    """Files opened one by one with PIL, the usual way to begin."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted((folder / "chips" / "train-jpg").iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(self.paths[place]).convert("RGB"))


def files_dataloader(folder: Path, workers: int) -> Ready:
    """Plain files, PIL, DataLoader."""
    loader = torch.utils.data.DataLoader(
        Files(folder), BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return Ready(lambda number, passes: map(len, loader), libraries=("torch", "pillow"))


def our_decoder(image: bytes) -> np.ndarray:
    """The pixels, by the project's own decoder."""
    return decode(image, "jpg")


def _webdataset(folder: Path, workers: int, *stages: Callable[[Any], Any], stack: bool = True) -> Ready:
    import webdataset

    tars = sorted(str(path) for path in (folder / "jpg").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000)
    for stage in stages:
        dataset = stage(dataset)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    return Ready(lambda number, passes: (len(images) for (images,) in loader), libraries=("webdataset", "torch"))


def webdataset_stock(folder: Path, workers: int) -> Ready:
    """webdataset as its manual shows it: decode("rgb8") by PIL, batched in the workers."""
    return _webdataset(folder, workers, lambda d: d.decode("rgb8").to_tuple("jpg").batched(BATCH))


def webdataset_our_decoder(folder: Path, workers: int) -> Ready:
    """webdataset, with the project's decoder."""
    return _webdataset(folder, workers, lambda d: d.to_tuple("jpg").map_tuple(our_decoder).batched(BATCH))


def webdataset_usual(folder: Path, workers: int) -> Ready:
    """webdataset's usual pipeline: PIL, torchvision's transforms, float32 224x224."""
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
    )
    torch.set_num_threads(1)
    return _webdataset(folder, workers, lambda d: d.decode("pil").to_tuple("jpg").map_tuple(prepare).batched(BATCH))


def images_of(folder: Path) -> Iterator[dict[str, bytes]]:
    """The chips' files, for peers that pack their own."""
    for path in sorted((folder / "chips" / "train-jpg").iterdir()):
        yield {"jpeg": path.read_bytes()}


def jpeg_decoded(sample: dict[str, bytes]) -> np.ndarray:
    """A sample's pixels."""
    return our_decoder(sample["jpeg"])


def same(sample: dict[str, bytes]) -> dict[str, bytes]:
    """A sample as it is."""
    return sample


def litdata_our_decoder(folder: Path, workers: int) -> Ready:
    """litdata, its chunks on the local disk, with the project's decoder."""
    import litdata

    chunks = folder / "litdata"
    if not chunks.exists():
        litdata.optimize(same, list(images_of(folder)), str(chunks), chunk_bytes="16MB", num_workers=1, verbose=False)
    dataset = litdata.StreamingDataset(str(chunks), shuffle=True, drop_last=False, transform=jpeg_decoded)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return Ready(lambda number, passes: map(len, loader), libraries=("litdata", "torch"))


def torchdata_nodes(folder: Path, workers: int) -> Ready:
    """torchdata's nodes over files, threads, with the project's decoder."""
    from torchdata import nodes

    paths = sorted((folder / "chips" / "train-jpg").iterdir())

    def load(place: int) -> np.ndarray:
        return our_decoder(paths[place].read_bytes())

    def epoch(number: int, passes: int) -> Iterator[int]:
        order = np.concatenate(shuffled(len(paths), number)).tolist()
        node = nodes.ParallelMapper(nodes.IterableWrapper(order), load, num_workers=workers, method="thread")
        batches = nodes.Prefetcher(
            nodes.Mapper(nodes.Batcher(node, BATCH), torch.utils.data.default_collate), prefetch_factor=2
        )
        for images in nodes.Loader(batches):
            yield len(images)

    return Ready(epoch, libraries=("torchdata", "torch"))


def mosaicml_streaming(folder: Path, workers: int) -> Ready:
    """MosaicML's streaming, its shards on the local disk, with the project's decoder."""
    import streaming

    class Decoded(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> np.ndarray:
            return our_decoder(super().__getitem__(index)["jpeg"])

    shards = folder / "mds"
    if not shards.exists():
        with streaming.MDSWriter(out=str(shards), columns={"jpeg": "bytes"}, size_limit=16 * 2**20) as writer:
            for sample in images_of(folder):
                writer.write(sample)
    streaming.base.util.clean_stale_shared_memory()
    dataset = Decoded(local=str(shards), shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True)
    return Ready(lambda number, passes: map(len, loader), libraries=("mosaicml-streaming", "torch"))


CONTESTANTS: dict[str, Callable[[Path, int], Ready]] = {
    "bare-decoder": bare_decoder,
    "stream": stream,
    "stream-cached": lambda folder, threads: stream(folder, threads, cached=True),
    "stream-float": stream_float,
    "numpy-copy": copying,
    "stream-tiff": lambda folder, threads: stream(folder, threads, kind="tif"),
    "bare-tiff": bare_tiff,
    "files": files_dataloader,
    "webdataset": webdataset_stock,
    "webdataset-our-decoder": webdataset_our_decoder,
    "webdataset-usual": webdataset_usual,
    "litdata": litdata_our_decoder,
    "torchdata": torchdata_nodes,
    "mosaicml": mosaicml_streaming,
}


def private_bytes() -> int:
    """Memory of this process and those it started, by /proc: what is theirs alone, and what they share, once.

    Pages of files that are merely mapped are the kernel's to take back, and not in it.
    """
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # ended meanwhile
        fields = {line.split(":")[0]: line.split()[1] for line in rollup.splitlines()[1:]}
        total += 1024 * (int(fields["Pss_Anon"]) + int(fields["Pss_Shmem"]))
    return total


def run(ready: Ready, number: int, passes: int, memory_before: int | None) -> dict[str, float]:
    """Images/s over some epochs; with `memory_before`, the memory beside the batches in the midst of one."""
    images = memory = 0
    ready.prepare()
    started = time.perf_counter()
    for length in ready.epoch(number, passes):
        images += length
        if memory_before is not None and memory == 0 and images >= 4 * BATCH:
            memory = private_bytes() - memory_before - ready.batch_bytes
    return {"images_per_second": images / (time.perf_counter() - started), "private_bytes": memory}


def main() -> None:
    """Answers until there is no more to read."""
    name, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    before = private_bytes()
    ready = CONTESTANTS[name](folder, workers)
    versions = " ".join(f"{library} {version(library)}" for library in ready.libraries)
    print(json.dumps({"versions": versions}), file=out, flush=True)
    for line in sys.stdin:
        number, passes, memory = json.loads(line)
        answer = run(ready, number, passes, before if memory else None)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
