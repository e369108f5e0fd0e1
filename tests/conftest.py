"""Fixtures of the end-to-end tests: tiny checkpoints, one repository with several pipelines, one real Triton for them all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest

from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.limits import Limits
from nereid_client import Client, ImageResult

for folder in (
    Path(__file__).parent / "e2e",
    Path(__file__).parent / "export",
    Path(__file__).parent / "llm",
    Path(__file__).parent / "serving",
    Path(__file__).parent / "client",
    Path(__file__).parent / "diffusion",
    Path(__file__).parent / "layout",
    Path(__file__).parent / "page",
    Path(__file__).parent / "bridge",
    Path(__file__).parent / "benchmarks",
    Path(__file__).parent / "clients",
    Path(__file__).parent / "zoo",
    Path(__file__).parent,  # the first to be looked into: its conftest is the one that tests import from
):
    sys.path.insert(0, str(folder))

from as_ever import process_as_ever, pytest_fixture_setup, random_as_ever  # noqa: F401

ZOO = Path(__file__).parents[1] / "zoo"


TILE = 64
"""Pixels a side of the pipeline `v`'s tiles: beyond that, its pictures are decoded by several."""

SHARED_SERVER = (
    *("tests/e2e/", "tests/docker/", "tests/repository/"),
    *("tests/diffusion/test_prompts_and_images.py", "tests/zoo/test_sections.py"),
)
"""Where tests use the shared repository, or would disturb those that do by a large server of their own."""
SHARED_PACKAGE = ("tests/engines/test_torch.py", "tests/export/test_torch_aoti.py")
"""Where tests use the shared package, which takes long to compile."""


SLOW = ("tests/e2e/", "tests/export/", "tests/benchmarks/", "tests/zoo/", "tests/engines/")
"""Folders whose files may take minutes, in the order in which they begin."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: tests that share a server, or a package, run in one process, the others file by file.

    What takes long begins first, so that no process is left with a minute's work that the others could have had.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            # Of the same folder, the file of the most tests is first, as the others are.
            self.workqueue.move_to_end(min(self.workqueue, key=place), last=False)
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid: str) -> str:
            for shared in (SHARED_SERVER, SHARED_PACKAGE):
                if nodeid.startswith(shared):
                    return shared[0]
            return super()._split_scope(nodeid)

    def place(scope: str) -> int:
        return next((number for number, folder in enumerate(SLOW) if scope.startswith(folder)), len(SLOW))

    return ByServer(config, log) if config.getvalue("dist") == "loadfile" else None


TERMINALS = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables by which Typer, when it is imported, and rich take a file for a terminal of colours, or of another width."""


def pytest_configure() -> None:
    """Tests interrupt themselves and their children, also where a shell has started them in the background (SIGINT ignored).

    What commands say is the same wherever tests run.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in TERMINALS:
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def warm_probes() -> Iterator[None]:
    """Exports in the tests' process measure memory in forks of one process, and not in one each that begins with imports."""
    import warm_probe

    memory = sys.modules.get("nereid_export.memory")  # whoever exports has imported it by now
    with patch.object(memory, "run_probe", warm_probe.run_probe) if memory else contextlib.nullcontext():
        yield


@pytest.fixture
def stub() -> Iterator[tuple[Any, Any]]:
    """`nereid.triton.bridge` and `calls`, over a stand-in for Triton's own module."""
    from stub_utils import stub_modules

    with stub_modules() as modules:
        yield modules


@pytest.fixture
def bridge(stub: tuple[Any, Any]) -> Any:
    return stub[0]


@pytest.fixture
def calls(stub: tuple[Any, Any]) -> Any:
    return stub[1]


class Silent:
    """Export progress that nobody watches."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def total(self, steps: int) -> None: ...

    def step(self, text: str) -> None:
        self.said.append(text)

    def detail(self, text: str) -> None: ...

    def waiting(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Served:
    """A running server and what it serves."""

    repository: Path
    http: int
    grpc: int
    metrics: int
    health: int
    supervisor: object
    checkpoints: dict[str, Path]

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.http}"


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Path:
    """The folder that `write` has written for all processes of this run, whoever asked first: to be read only."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            write(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny checkpoints with random weights, by family: to be read only."""
    pytest.importorskip("torch")
    import checkpoints as make

    def write(root: Path) -> None:
        make.make_sd(root / "sd")
        make.make_lcm(root / "lcm")
        make.make_sdxl(root / "sdxl")
        make.make_v_prediction(root / "v")
        make.make_dynamic_layout(root / "layout")

    root = shared_by_workers(tmp_path_factory, "checkpoints", write)
    return {family: root / family / "checkpoint" for family in ("sd", "lcm", "sdxl", "v")} | {"layout": root / "layout"}


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny VAE with random weights, for the latents of `sd`."""
    pytest.importorskip("torch")
    import checkpoints as make

    return make.make_tiny_vae(tmp_path_factory.mktemp("tiny") / "little")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the AOTInductor package of a tiny component: to be read only."""
    pytest.importorskip("torch")
    import packages

    return packages.make_package(tmp_path_factory.mktemp("package"))


def export(checkpoint: Path, out: Path, **options: object) -> None:
    from nereid_export.diffusion import export_diffusion
    from nereid_export.options import ExportOptions

    export_diffusion(ExportOptions(checkpoint=checkpoint, out=out, **options), Silent())  # type: ignore[arg-type]


def export_llm(checkpoint: Path, out: Path, precision: str = "int4", **options: object) -> dict[str, object]:
    from nereid_export.llm import LlmExportOptions, LlmPrecision
    from nereid_export.llm import export_llm as export

    import warm_builder

    chosen = LlmExportOptions(checkpoint=checkpoint, out=out, precision=LlmPrecision(precision), **options)  # type: ignore[arg-type]
    with patch("nereid_export.llm_genai.run_builder", warm_builder.run_builder):
        return export(chosen, Silent())


def export_layout(checkpoint: Path, out: Path, engine: str = "onnxruntime", **options: object) -> dict[str, object]:
    from nereid_export.engines import Engine
    from nereid_export.layout import LayoutExportOptions
    from nereid_export.layout import export_layout as export

    chosen = LayoutExportOptions(checkpoint=checkpoint, out=out, engine=Engine(engine), **options)  # type: ignore[arg-type]
    return export(chosen, Silent())


def export_layout_w4a8(checkpoint: Path, out: Path, **options: object) -> dict[str, object]:
    """From few briefs, and whatever it costs: what a random transformer draws means nothing."""
    from nereid_export import layout_w4a8 as module
    from nereid_export.engines.precision import Precision

    with (
        patch.object(module, "CALIBRATION_BRIEFS", 16),
        patch.object(module, "BRIEFS", 12),
        patch.object(module, "refuse_loss", lambda component, quality: None),
    ):
        return export_layout(checkpoint, out, precision=Precision.W4A8, **options)


def export_page(out: Path, **options: object) -> dict[str, object]:
    from nereid_export.page import PageExportOptions
    from nereid_export.page import export_page as export

    return export(PageExportOptions(out=out, **options), Silent())  # type: ignore[arg-type]


def made_once(tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path, str], object]) -> Callable[[str], Path]:
    """Repositories by precision, each written when it is first asked for: to be read only."""

    @cache
    def repository(precision: str) -> Path:
        out = tmp_path_factory.mktemp(precision) / "out"
        write(out, precision)
        return out

    return repository


def set_parameters(repository: Path, model: str, **parameters: object) -> None:
    """Change parameters of a published model's config."""
    from nereid.engines.digests import sign
    from nereid_export.configs import read_config, write_config

    config = read_config(repository / model / "config.pbtxt")
    for key, value in parameters.items():
        config.parameters[key].string_value = str(value)
    write_config(config, repository / model)
    sign(repository)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """Pipelines '' (epsilon), 'v' (its UNet cut), 'xl', 'lcm', and 'tight' with narrow limits, in one repository, with language
    models, layout models, and `page`: to be read only."""
    return (
        shared_by_workers(tmp_path_factory, "build", lambda folder: write_repository(folder / "repository", checkpoints))
        / "repository"
    )


def write_repository(out: Path, checkpoints: dict[str, Path]) -> None:
    for name, family in (("", "sd"), ("v", "v"), ("xl", "sdxl"), ("lcm", "lcm"), ("tight", "sd")):
        export(checkpoints[family], out, name=name, cache_branch=0 if name == "v" else None)
    sections = ZOO / "sections" / "checkpoint"
    export_llm(sections, out)
    export_llm(sections, out, name="exact", precision="fp32", draft=sections, embeddings=True)
    export_layout(checkpoints["layout"], out, cache=True, widths=True)
    export_layout(checkpoints["layout"], out, engine="openvino", name="ov")
    export_layout_w4a8(checkpoints["layout"], out, name="w4a8")
    set_parameters(out, "ov_layout", engine_patience_seconds=0.01)
    export_llm(ZOO / "planner" / "checkpoint", out, name="planner")
    export_page(out, planner="planner_llm", picture_prompts=ZOO / "shapes" / "page-prompts.json")
    for model in ("llm", "exact_llm"):
        set_parameters(out, model, kv_tokens=16384)
    set_parameters(out, "llm", stream_interval_seconds=0)  # streams are as fine as they can be
    set_parameters(out, "v_denoise", tile_sample_min_size=TILE)
    set_parameters(out, "tight_denoise", max_inflight=2, max_queue=1, max_pixels=64 * 64, max_steps=1000)


def copy_pipeline(repository: Path, out: Path) -> None:
    """The models of the pipeline '' alone, as an export of the same checkpoint would write them."""
    from nereid_export.frame import models_of

    for model in models_of(repository, "text_to_image"):
        shutil.copytree(repository / model, out / model)


def serving(repository: Path, folder: Path, checkpoints: dict[str, Path]) -> Iterator[Served]:
    from nereid.serving.options import ServeOptions
    from nereid.serving.supervisor import Supervisor

    options = ServeOptions.on_free_ports(repository, folder / "triton.log")
    with Supervisor(options) as supervisor:
        yield Served(
            repository,
            options.http_port,
            options.grpc_port,
            options.metrics_port,
            options.health_port,
            supervisor,
            checkpoints,
        )


def wait_until_whole(served: Served, *, seconds: float) -> None:
    """Until the server is ready, and has done with all deaths, those that it has not noticed yet included."""
    import httpx

    deadline = time.monotonic() + seconds
    while True:
        page = httpx.get(f"http://127.0.0.1:{served.health}/ready", timeout=30).json()
        supervisor: Any = served.supervisor
        alive = supervisor._triton.count_stubs()
        if page["ready"] and not page["restart_pending"] and all(alive[name] >= n for name, n in supervisor._expected.items()):
            return
        assert time.monotonic() < deadline, page
        time.sleep(0.1)


def in_company(client: Client, prompt: str, **request: Any) -> ImageResult:
    """The picture while seven others are drawn, all different, which join and leave at other steps."""
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(client.generate_image, f"a box {i}", num_inference_steps=4 + i, seed=i) for i in range(7)]
        made = pool.submit(client.generate_image, prompt, **request).result()
        assert len({other.result().pixels.tobytes() for other in others}) == 7
    return made


@contextlib.contextmanager
def gateway(
    served: Served, key: str = "", limits: Limits | None = None, rules: Rules | None = None, repository: Path | None = None
) -> Iterator[str]:
    """The gateway's process before a running server; its address. `repository`: another one that it reads of models."""
    from nereid.serving.gateway.service import BACKLOG, gateway_service
    from nereid.serving.listening import listen
    from nereid.serving.options import ServeOptions, free_ports

    (port,) = free_ports(1)
    options = ServeOptions(
        repository=repository or served.repository,
        grpc_port=served.grpc,
        metrics_port=served.metrics,
        health_port=served.health,
    )
    listener = listen("--openai-port", "127.0.0.1", port, BACKLOG)
    service = gateway_service(options, listener, {"NEREID_API_KEY": key}, limits, rules)
    try:
        service.start()
        yield f"http://127.0.0.1:{port}"
    finally:
        service.stop(5)


@pytest.fixture(scope="session")
def served(repository: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server that most end-to-end tests share."""
    yield from serving(repository, tmp_path_factory.mktemp("served"), checkpoints)


@dataclass(frozen=True)
class OwnTemporary:
    """A temporary folder of one test's serves: what they leave there, and in shared memory, is theirs alone."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.folder)}

    def regions(self) -> set[str]:
        """What the shared memory of the serves that are alive begins with."""
        return {file.read_text().strip() for file in self.folder.glob("nereid-serve-*/regions")}

    def folders(self) -> list[Path]:
        return list(self.folder.glob("nereid-serve-*"))


def shared_memory(regions: set[str]) -> list[Path]:
    return [file for prefix in regions for file in Path("/dev/shm").glob(f"{prefix}*")]


@pytest.fixture
def temporary() -> Iterator[OwnTemporary]:
    with tempfile.TemporaryDirectory(prefix="nt") as folder:  # short: sockets in it have names of 108 bytes at most
        yield OwnTemporary(Path(folder))


def stub_of(served: Served, model: str) -> psutil.Process:
    """The Python process of a model's first instance."""
    for child in psutil.Process(served.supervisor.triton_pid).children(recursive=True):  # type: ignore[attr-defined]
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-2:-1] == [f"{model}_0_0"]:
                return child
    raise AssertionError(f"{model} has no process")
