"""Datasets behind URLs give the same chips as folders, whatever the server does, or end with a reason."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from planet_dist import as_webdataset
from planet_dist.config import load_config
from planet_dist.data import open_data
from planet_dist.plan import evaluation_batches
from planet_dist.stream import DecodedBatches, FixedSteps
from shards.cli import main
from shards.errors import ConfigError, DatasetError
from shards.reader import Dataset
from shards.storage import CacheOptions, Patience
from shards.verify import verify
from tests.conftest import launch
from tests.file_server import FileServer, serving

QUICK = Patience(stall_seconds=0.7, tries=3, first_pause_seconds=0.02)


@pytest.fixture
def server(dataset: Dataset) -> Iterator[FileServer]:
    with serving(dataset.root) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> CacheOptions:
    return CacheOptions(tmp_path / "cache", 2**30, QUICK)


def shard_name(dataset: Dataset, number: int = 0) -> str:
    return f"{dataset.manifest.shards[number].name}.tar"


def same_chips(found: Dataset, expected: Dataset) -> None:
    np.testing.assert_array_equal(found.index(), expected.index())
    for chip_id in range(len(expected)):
        assert bytes(found.image(chip_id)) == bytes(expected.image(chip_id))


def test_a_dataset_over_http_holds_the_same_chips_and_is_fetched_once(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    found = Dataset(server.url, cache)
    assert found.digest == dataset.digest and len(found.manifest.shards) > 2
    same_chips(found, dataset)
    same_chips(Dataset(server.url, cache), dataset)
    counts = Counter(server.asked)
    assert counts.pop("manifest.json") == 2 and set(counts.values()) == {1}


def test_labels_are_known_before_any_shard_is_fetched(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    Dataset(server.url, cache).index()
    assert not any(name.endswith(".tar") for name in server.asked)


@pytest.mark.parametrize("fault", [503, 429, "cut", "wrong", "stall", "slow", "endless"])
@pytest.mark.parametrize("ending", ["tar", "idx"])
def test_a_passing_fault_leaves_no_trace(
    dataset: Dataset, server: FileServer, cache: CacheOptions, fault: int | str, ending: str
) -> None:
    name = f"{dataset.manifest.shards[1].name}.{ending}"
    server.faults[name] = [fault]
    same_chips(Dataset(server.url, cache), dataset)
    assert server.asked.count(name) == (1 if fault == "slow" else 2)
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [
        (503, 3, "the server answered 503"),
        (404, 1, "no such file"),
        (403, 1, "answered 403.*credentials"),
        ("cut", 3, "tries"),
        ("stall", 3, "no byte for 0.7 seconds"),
        ("wrong", 2, "not what the manifest says, fetched twice"),
        ("endless", 2, "more than the"),
    ],
)
def test_a_lasting_fault_ends_soon_and_names_the_file_and_the_remedy(
    dataset: Dataset, server: FileServer, cache: CacheOptions, fault: int | str, tries: int, said: str
) -> None:
    name = shard_name(dataset)
    server.faults[name] = [fault] * 9
    found = Dataset(server.url, cache)
    with pytest.raises(DatasetError, match=said) as caught:
        found.image(0)
    assert f"{server.url}/{name}" in str(caught.value) and "; " in str(caught.value)
    assert server.asked.count(name) == tries
    assert not [path for path in cache.folder.iterdir() if len(path.stem) == 64 and path.suffix]


def test_a_server_that_drips_is_given_up_although_it_never_stalls(
    dataset: Dataset, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote._GRACE_SECONDS", 0.1)
    patience = Patience(stall_seconds=5, slowest_bytes_per_second=1e9, tries=2, first_pause_seconds=0.01)
    server.faults[shard_name(dataset)] = ["slow"] * 9
    found = Dataset(server.url, CacheOptions(tmp_path / "cache", 2**30, patience))
    with pytest.raises(DatasetError, match=r"bytes in \d+ seconds"):
        found.image(0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data", "http://no-such-host.invalid/data"])
def test_a_server_that_is_not_there_is_named(url: str, cache: CacheOptions) -> None:
    with pytest.raises(DatasetError, match=f"{url}/manifest.json: .*reached from this host"):
        Dataset(url, cache)


@pytest.mark.parametrize("url", ["nonsense://host/data", "http+nothing://x/y"])
def test_a_url_of_an_unknown_kind_says_so(url: str, cache: CacheOptions) -> None:
    with pytest.raises(DatasetError, match=r"cannot be opened.*copy the dataset into a folder"):
        Dataset(url, cache)


def test_a_manifest_that_never_ends_is_refused(
    server: FileServer, cache: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.MAX_MANIFEST_BYTES", 2**20)
    server.faults["manifest.json"] = ["endless"] * 9
    with pytest.raises(DatasetError, match="more than the"):
        Dataset(server.url, cache)


def test_a_webdataset_pipeline_of_a_url_is_refused_with_its_remedy(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the default cache is
    with pytest.raises(DatasetError, match="copy it into a folder"):
        as_webdataset(server.url)


def test_a_file_url_is_a_plain_folder_and_memory_needs_no_server(dataset: Dataset, cache: CacheOptions) -> None:
    local = Dataset(f"file://{dataset.root}", cache)
    assert local.root == dataset.root and not local.storage.remote
    memory = fsspec.filesystem("memory")
    memory.put(f"{dataset.root}/", "/bucket/chips", recursive=True)
    same_chips(Dataset("memory://bucket/chips", cache), dataset)


def test_what_rots_in_the_cache_is_fetched_again(dataset: Dataset, server: FileServer, cache: CacheOptions) -> None:
    Dataset(server.url, cache).image(0)
    cached = cache.folder / dataset.manifest.shards[0].sha256
    data = bytearray(cached.read_bytes())
    data[600] ^= 1
    cached.write_bytes(data)
    same_chips(Dataset(server.url, cache), dataset)
    for sha256 in (dataset.manifest.shards[0].sha256, dataset.manifest.shards[0].index_sha256):
        (cache.folder / sha256).write_bytes(b"")
    same_chips(Dataset(server.url, cache), dataset)


def test_a_cache_of_two_shards_serves_a_dataset_of_many(dataset: Dataset, server: FileServer, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in dataset.manifest.shards)
    options = CacheOptions(tmp_path / "cache", 2 * largest + 100, QUICK)
    found = Dataset(server.url, options)
    assert len(dataset.manifest.shards) > 3
    rng = np.random.default_rng(0)
    for chip_id in rng.permutation(len(dataset)).tolist():
        assert bytes(found.image(chip_id)) == bytes(dataset.image(chip_id))
        assert sum(path.stat().st_size for path in options.folder.iterdir()) <= options.limit_bytes
        assert len(found._tars) <= 3, "tars that the cache let go of are closed"


def test_the_stream_has_shards_fetched_before_they_are_read(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    found = Dataset(server.url, cache)
    targets_NC = dataset.manifest.vocabulary.matrix(dataset.index()["labels"])
    steps = FixedSteps(evaluation_batches(np.arange(len(dataset)), 8, 0, 1))
    batches = iter(DecodedBatches(found, targets_NC, 8, threads=1, prefetch_batches=2)(steps()))
    first = next(batches)
    np.testing.assert_array_equal(first.images_BHWC[3].numpy(), dataset.pixels(3))
    tars = {shard_name(dataset, number) for number in range(len(dataset.manifest.shards))}
    deadline = time.monotonic() + 10
    while tars - set(server.asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not tars - set(server.asked), "all shards of the announced steps, though one batch alone was read"
    assert sum(len(batch.ids_B) for batch in batches) + 8 == 15 * 8
    assert all(server.asked.count(name) == 1 for name in tars)


READ_ALL = """
import sys
from pathlib import Path
from shards.reader import Dataset
from shards.storage import CacheOptions
found = Dataset(sys.argv[1], CacheOptions(Path(sys.argv[2])))
print(sum(len(found.image(i)) for i in range(len(found))))
"""


def test_processes_of_a_host_share_each_fetch(dataset: Dataset, server: FileServer, tmp_path: Path) -> None:
    for shard in dataset.manifest.shards:
        server.faults[f"{shard.name}.tar"] = ["slow"]
    command = [sys.executable, "-c", READ_ALL, server.url, str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    expected = sum(len(dataset.image(i)) for i in range(len(dataset)))
    assert [int(process.communicate(timeout=60)[0]) for process in started] == [expected] * 2
    counts = Counter(server.asked)
    assert all(counts[f"{shard.name}.tar"] == 1 for shard in dataset.manifest.shards)


def test_a_process_killed_while_it_fetches_leaves_no_trap(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    name = shard_name(dataset)
    server.faults[name] = ["stall"]
    process = subprocess.Popen([sys.executable, "-c", READ_ALL, server.url, str(cache.folder)])
    deadline = time.monotonic() + 30
    while name not in server.asked and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.kill()
    process.wait()
    assert [path.suffix for path in cache.folder.glob("*.part")] == [".part"]
    same_chips(Dataset(server.url, cache), dataset)
    assert not list(cache.folder.glob("*.part"))


def test_many_threads_fetch_each_shard_once(dataset: Dataset, server: FileServer, cache: CacheOptions) -> None:
    found = Dataset(server.url, cache)
    threads = [threading.Thread(target=found.image, args=(i % len(dataset),)) for i in range(0, 960, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    tars = Counter(name for name in server.asked if name.endswith(".tar"))
    assert tars and set(tars.values()) == {1}


def test_the_check_finds_a_dataset_behind_a_url_sound_or_names_what_is_not(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    report = verify(server.url, workers=2, cache=cache)
    assert report.chips == len(dataset) and not report.problems
    for path in cache.folder.iterdir():
        path.unlink()
    server.faults[shard_name(dataset)] = ["wrong"] * 9
    (problem,) = verify(server.url, cache=cache).problems
    assert shard_name(dataset) in problem.file and "fetched twice" in problem.value


def test_a_cache_that_cannot_be_written_says_what_to_do(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cache cannot be used.*another cache folder"):
        Dataset(server.url, CacheOptions(tmp_path / "file" / "cache"))


def test_a_query_goes_to_the_server_with_every_file_and_nowhere_else(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    found = Dataset(f"{server.url}?signature=hush-hush", cache)
    same_chips(found, dataset)
    assert all(target.endswith("?signature=hush-hush") for target in server.targets)
    server.faults["manifest.json"] = [403]
    with pytest.raises(DatasetError) as caught:
        Dataset(f"{server.url}?signature=hush-hush", cache)
    assert "hush" not in str(caught.value) + found.shown + repr(list(cache.folder.iterdir()))


def test_a_user_and_password_go_to_the_server_and_nowhere_else(
    dataset: Dataset, server: FileServer, cache: CacheOptions
) -> None:
    url = server.url.replace("http://", "http://anna:hush-hush@")
    found = Dataset(url, cache)
    assert server.authorizations[0] is not None and server.authorizations[0].startswith("Basic ")
    server.faults[shard_name(dataset)] = ["wrong"] * 9
    with pytest.raises(DatasetError) as caught:
        found.image(0)
    assert "hush" not in f"{caught.value} {found.shown}"
    assert caught.value.__suppress_context__, "what the library said, which may hold all of the URL, is not shown"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """An S3-compatible server on loopback, which takes any credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(dataset: Dataset, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which the dataset lies, the endpoint and the credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUSHHUSH")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush+hush")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    if not system.exists("chips"):
        system.mkdir("chips")
        system.put(f"{dataset.root}/", "chips/sets/jpg/", recursive=True)
    return "s3://chips/sets/jpg"


def test_a_dataset_in_s3_holds_the_same_chips(dataset: Dataset, bucket: str, cache: CacheOptions) -> None:
    same_chips(Dataset(bucket, cache), dataset)
    assert not verify(f"{bucket}/", cache=cache).problems


def test_an_s3_location_that_is_not_there_is_named_without_secrets(bucket: str, cache: CacheOptions) -> None:
    for url in ("s3://chips/elsewhere", "s3://no-such-bucket/sets"):
        with pytest.raises(DatasetError, match=f"{url}/manifest.json: no such file") as caught:
            Dataset(url, cache)
        assert "hush" not in str(caught.value).lower()


def test_an_s3_server_that_is_gone_is_named_without_secrets(
    bucket: str, cache: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DatasetError, match="reached from this host") as caught:
        Dataset("s3://AKIAHUSHHUSH:hush@other/sets", cache)
    assert "hush" not in str(caught.value).lower()


def test_a_wrong_object_in_s3_is_fetched_twice_and_then_an_error(
    dataset: Dataset, bucket: str, cache: CacheOptions
) -> None:
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    name = dataset.manifest.shards[-1].name
    system.copy(f"chips/sets/jpg/{dataset.manifest.shards[0].name}.tar", f"chips/sets/jpg/{name}.tar")
    try:
        with pytest.raises(DatasetError, match=f"{name}.tar: not what the manifest says, fetched twice"):
            Dataset(bucket, cache).image(len(dataset) - 1)
    finally:
        system.put(f"{dataset.root}/{name}.tar", f"chips/sets/jpg/{name}.tar")


def test_a_run_from_a_url_ends_without_a_trace_of_its_credentials(
    dataset: Dataset, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "openSesame/2")
    url = server.url.replace("http://", "http://anna:openSesame@") + "?sig=openSesame%2B"
    run = tmp_path / "run"
    done = launch(
        "planet_dist/train.py",
        *("--recipe", "small-resnet-32", "--data", url, "--out", str(run)),
        *(
            "data.split=tail:30",
            "model.width=8",
            "phases.0.epochs=1",
            "tracking.wandb=offline",
            "runtime.figures=false",
        ),
        f"runtime.cache_dir={tmp_path / 'cache'}",
        ranks=1,
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in [*run.rglob("*"), *(tmp_path / "cache").rglob("*")] if path.is_file()]
    for name in ("config.toml", "state.json", "bundle.json", ".wandb"):
        assert any(path.name.endswith(name) for path in files), name
    (tracked,) = [path.read_bytes() for path in files if path.suffix == ".wandb"]
    assert b"http://***@127.0.0.1" in tracked, "the command line stands there as it is, if it were not for the secrets"
    assert [path for path in files if b"openSesame" in path.read_bytes()] == []
    assert "openSesame" not in done.stdout + done.stderr
    assert any(shard.sha256 in {path.name for path in files} for shard in dataset.manifest.shards)


def test_the_commands_name_a_url_without_its_credentials(
    dataset: Dataset, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNATURE", "openSesame")
    words = [f"{server.url}?sig=$SIGNATURE", "--cache-dir", str(tmp_path / "cache")]
    for command, shown in (("info", "120"), ("verify", "all sound")):
        done = CliRunner().invoke(main, [command, *words])
        assert done.exit_code == 0 and shown in done.output, done.output
        assert "openSesame" not in done.output
    assert all(target.endswith("?sig=openSesame") for target in server.targets)
    server.faults["manifest.json"] = [403] * 9
    done = CliRunner().invoke(main, ["info", *words])
    assert done.exit_code == 1 and "the server answered 403" in done.output
    assert "openSesame" not in done.output and server.url in done.output
    server.faults.clear()
    config = load_config("small-resnet-32", ["data.kind=tif", f"runtime.cache_dir={tmp_path / 'cache'}"])
    with pytest.raises(ConfigError, match="meant for tif") as caught:
        open_data(config, f"{server.url}?sig=$SIGNATURE")
    assert "openSesame" not in str(caught.value)
