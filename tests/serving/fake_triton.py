"""A program that behaves as tritonserver does, as far as its supervisor sees: processes named as stubs, readiness over gRPC,
a metrics page, the control socket. What it does wrong is read from `behaviour.json` beside it, at each start anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


def install(folder: Path) -> Path:
    """An installation whose `tritonserver` this is; returns the folder for PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "backends" / "python").mkdir(parents=True)
    server = folder / "bin" / "tritonserver"
    here = Path(__file__).resolve()
    path = f"import sys\nsys.path.insert(0, {str(here.parent)!r})\n"
    server.write_text(f"#!{sys.executable}\n{path}import fake_triton\nfake_triton.main()\n")
    server.chmod(0o755)
    behave(folder)
    return server.parent


def behave(folder: Path, **behaviour: object) -> None:
    (folder / "behaviour.new").write_text(json.dumps(behaviour))
    (folder / "behaviour.new").rename(folder / "behaviour.json")


def starts(folder: Path) -> int:
    file = folder / "starts"
    return len(file.read_text()) if file.is_file() else 0


def write_models(repository: Path, *names: str, more: str = "") -> Path:
    for name in names:
        (repository / name / "1").mkdir(parents=True)
        config = f'name: "{name}" backend: "python" instance_group [ {{ count: 1 }} ] {more}'
        (repository / name / "config.pbtxt").write_text(config)
    return repository


def main() -> None:
    home = Path(sys.argv[0]).resolve().parent.parent
    with (home / "starts").open("a") as file:
        file.write(".")
    behaviour = json.loads((home / "behaviour.json").read_text())
    options: dict[str, list[str]] = {}
    for argument in sys.argv[1:]:
        key, _, value = argument.removeprefix("--").partition("=")
        options.setdefault(key, []).append(value)
    if "says" in behaviour:
        print(behaviour["says"], flush=True)
    if "exits" in behaviour:
        sys.exit(behaviour["exits"])
    server = _Server(home, options, behaviour)
    server.serve()
    time.sleep(float(behaviour.get("lives", 600)))
    os._exit(3)


class _Server:
    def __init__(self, home: Path, options: dict[str, list[str]], behaviour: dict[str, Any]) -> None:
        self.home, self.options, self.behaviour = home, options, behaviour
        here = [folder.name for root in options["model-repository"] for folder in sorted(Path(root).iterdir())]
        self.models = here if options["load-model"] == ["*"] else options["load-model"]
        if not set(self.models) <= set(here) or self.behaviour.get("load_fails") in self.models:
            sys.exit(1)
        (self.regions,) = (
            value.partition("=")[2] for value in options["backend-config"] if value.startswith("python,shm-region-prefix-name=")
        )
        self.stubs: dict[str, subprocess.Popen[bytes]] = {}
        self.script = home / "stub.sh"
        # It waits without a child while this process lives: one that has just been forked looks like a second stub.
        self.script.write_text("while :; do read line || sleep 0.2; done\n")

    def serve(self) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        from nereid.triton.control import serve_control

        for model in self.models:
            self.start_stub(model)
        serve_control({"load_model": self.load, "unload_model": self.unload})
        never = bool(self.behaviour.get("never_ready"))

        class Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ModelReady(self, request: Any, context: object) -> Any:  # noqa: N802
                return service_pb2.ModelReadyResponse(ready=not never)

        class Metrics(BaseHTTPRequestHandler):
            page = str(self.behaviour.get("metrics", "")).encode()

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.page)

            def log_message(self, format: str, *args: object) -> None: ...

        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
        server.add_insecure_port(f"{self.options['grpc-address'][0]}:{self.options['grpc-port'][0]}")
        metrics = HTTPServer((self.options["metrics-address"][0], int(self.options["metrics-port"][0])), Metrics)
        threading.Thread(target=metrics.serve_forever, daemon=True).start()
        server.start()
        self.server = server

    def start_stub(self, model: str) -> None:
        region = f"{self.regions}{os.getpid()}_{model}"
        Path(f"/dev/shm/{region}_0").write_bytes(b"x")
        name = f"{self.behaviour.get('groups', {}).get(model, model + '_0')}_0"
        arguments = ["triton_python_backend_stub", str(self.script), region, "1", "1", "1", name, "folder"]
        self.stubs[model] = subprocess.Popen(arguments, executable="/bin/sh", stdin=subprocess.PIPE)

    def unload(self, model_name: str) -> None:
        with (self.home / "unloads").open("a") as file:
            file.write(f"{model_name}\n")
        if model_name in self.stubs:
            stub = self.stubs.pop(model_name)
            stub.kill()
            stub.wait()

    def load(self, model_name: str, config: str) -> None:
        if self.behaviour.get("load_fails") in (True, model_name):
            raise RuntimeError("failed to load")
        while "loads_once_there_is" in self.behaviour and not Path(self.behaviour["loads_once_there_is"]).exists():
            time.sleep(0.01)
        with (self.home / "loads").open("a") as file:
            file.write(f"{model_name}\n")
        if model_name in self.stubs:
            self.stubs[model_name].kill()
            self.stubs[model_name].wait()
        self.start_stub(model_name)
