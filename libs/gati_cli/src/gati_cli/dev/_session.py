"""One run of `gati dev`: start everything at once, wait until it serves, watch it, stop it in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gati_cli._errors import CliError
from gati_cli.dev._banner import changed_routes, curl_lines
from gati_cli.dev._lines import Event, Line, failure, parse_event, plain, short_path
from gati_cli.dev._options import DevOptions, check_paths, service_environ
from gati_cli.dev._output import Output
from gati_cli.dev._ports import choose_port, claimable_port
from gati_cli.dev._processes import Guard, Service
from gati_cli.state import FOLDER, DevState, DirectoryLock, remove_dev_state, write_dev_state
from gati_cli.target import Target, open_target, reachable_host, without_password

if TYPE_CHECKING:
    from gati_cli.routes import Route
    from gati_core.fabric import EmbeddedBroker

_START_WITHIN_S = 40.0
_REMIND_EVERY_S = 3.0
_RESTART_ONCE_PER_S = 30.0
_SAME_KEYPRESS_S = 0.3
_OLD_CODE_LEAVES_S = 1.0
# Together below five seconds, with half a second for the broker.
_STOP_WITHIN_S = {"ingress": (2.3, 2.2), "router": (0.7, 0.5), "worker": (1.4, 0.9)}


def run(options: DevOptions, environ: Mapping[str, str]) -> int:
    """See `run_dev`. What can be refused is refused before anything is started."""
    paths = check_paths(options)
    host = environ.get("GATI_INGRESS_HOST") or "127.0.0.1"
    port = choose_port(options.port, environ.get("GATI_INGRESS_PORT", ""))
    output = Output()
    lock = DirectoryLock.acquire(options.directory, say=output.say)
    try:
        port = claimable_port(host, port)
        session = Session(options, environ, paths=paths, host=host, port=port, output=output, lock=lock)
        return asyncio.run(session.run())
    finally:
        remove_dev_state(options.directory)
        lock.release()


class Session:
    """See the module."""

    def __init__(
        self,
        options: DevOptions,
        environ: Mapping[str, str],
        *,
        paths: Sequence[Path],
        host: str,
        port: int,
        output: Output,
        lock: DirectoryLock,
    ) -> None:
        self._options = options
        self._output = output
        self._lock = lock
        self._paths = paths
        self._host, self._port = host, port
        self._url = f"http://{reachable_host(host)}:{port}"
        self._namespace = environ.get("GATI_NAMESPACE") or "gati"
        self._broker_port = 0 if options.nats_url else _free_port()
        self._nats_url = options.nats_url or f"nats://127.0.0.1:{self._broker_port}"
        self._target = Target(self._nats_url, self._namespace, "the broker of gati dev", self._url, environ)
        settings = service_environ(environ, nats_url=self._nats_url, namespace=self._namespace, host=host, port=port)
        sources = [argument for path in paths for argument in ("--source", str(path))]
        commands = {
            "worker": ["-m", "gati_worker", *sources, "--watch"],
            "router": ["-m", "gati_router"],
            "ingress": ["-m", "gati_ingress"],
        }
        self._services = {
            name: Service(name, arguments, settings, on_line=self._on_line) for name, arguments in commands.items()
        }
        self._guard: Guard | None = None
        self._broker: EmbeddedBroker | None = None
        self._broker_start: asyncio.Future[None] | None = None
        self._restarted_at: dict[str, float] = {}
        self._signals = 0
        self._signalled_at = 0.0
        self._leaving = asyncio.Event()
        self._progress = asyncio.Event()
        self._up: set[str] = set()
        self._is_serving = False
        self._expected: set[str] | None = None
        self._failed: set[str] = set()
        self._loaded: set[str] = set()
        self._routes: list[Route] = []
        self._refresh: asyncio.Task[None] | None = None

    # -- the life of a run --------------------------------------------------------------------

    async def run(self) -> int:
        """Run until a signal, or until something cannot go on; everything is gone when it returns."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        work = asyncio.create_task(self._work())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            leaving.cancel()
            work.cancel()
            await asyncio.wait([work], timeout=1)
            await self._stop()
        return 130 if self._signals > 1 else 0

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self._signals:
            self._signals, self._signalled_at = 1, now
            self._output.say("\nstopping: ingress, router, worker" + ("" if self._options.nats_url else ", broker"))
            self._leaving.set()
            return
        if now - self._signalled_at < _SAME_KEYPRESS_S:
            return  # a program around us passed on what the terminal had sent us already
        self._signals += 1
        for service in self._services.values():
            service.kill()
        pid = self._broker_pid()
        if pid:
            os.killpg(pid, signal.SIGKILL)

    async def _work(self) -> None:
        began = time.monotonic()
        shown = ", ".join(short_path(str(path), self._options.directory) for path in self._paths)
        self._output.say(f"gati dev: {shown}", "bold")
        self._guard = await Guard.start(holding=self._lock.fd)
        # The services take longest to load, the worker most of all; they wait for the broker by themselves.
        for service in self._services.values():
            await service.start()
            self._guard.watch(service.pid)
        watching = [asyncio.create_task(self._keep_running(service)) for service in self._services.values()]
        ready = asyncio.create_task(self._get_ready(began))
        try:
            await asyncio.wait([ready, *watching], return_when=asyncio.FIRST_COMPLETED)
            for task in (*watching, ready):
                if task.done():
                    task.result()
            if self._broker is not None:
                watching.append(asyncio.create_task(self._keep_broker_running(self._broker)))
            await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            for task in watching:
                if task.done():
                    task.result()
        finally:
            tasks = [*watching, ready, *([self._refresh] if self._refresh is not None else [])]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop(self) -> None:
        for name in ("ingress", "router", "worker"):
            # Before it served, nothing can be in flight that is worth waiting for.
            within_s, insist_after_s = _STOP_WITHIN_S[name] if self._is_serving else (0.5, 0.4)
            service = self._services[name]
            left = await service.stop(within_s=within_s, insist_after_s=insist_after_s)
            if not left and self._is_serving:
                self._output.say(f"the {name} did not leave in time and was killed", "yellow")
            if self._guard is not None:
                self._guard.forget(service.pid)
        if self._broker_start is not None:
            await asyncio.wait([self._broker_start])
        pid = self._broker_pid()
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
        if self._guard is not None:
            self._guard.forget(pid)
            await self._guard.leave()
        if self._signals:
            self._output.say("stopped")

    # -- starting -----------------------------------------------------------------------------

    async def _get_ready(self, began: float) -> None:
        """Return once requests are answered, or once it is known which packages cannot be loaded."""
        self._output.say(f"  waiting for {self._awaited()}", "dim")
        if self._options.nats_url:
            async with open_target(self._target._replace(origin="given by you")):
                self._mark("broker", f"broker   {without_password(self._nats_url)}, not started by gati dev")
        else:
            await self._start_broker()
            self._mark("broker", f"broker   {self._nats_url}, state in {FOLDER}/nats")
        state = DevState(self._nats_url, self._namespace, self._url, os.getpid())
        write_dev_state(self._options.directory, state)
        remind_at = time.monotonic() + _REMIND_EVERY_S
        while self._awaited() or (await self._unready_reasons()):
            if time.monotonic() > began + _START_WITHIN_S:
                reasons = "; ".join(await self._unready_reasons())
                raise CliError(f"not ready after {_START_WITHIN_S:g} s, still waiting for {self._awaited() or reasons}")
            if time.monotonic() > remind_at:
                remind_at += _REMIND_EVERY_S
                self._output.say(f"  still waiting for {self._awaited() or 'the ingress to see the router'}", "dim")
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), 0.05)
            except TimeoutError:
                pass
        await self._refresh_routes()
        self._show_banner(time.monotonic() - began)
        self._is_serving = True

    async def _start_broker(self) -> None:
        self._broker_start = asyncio.ensure_future(asyncio.to_thread(self._start_broker_now))
        is_guarded = False
        while not self._broker_start.done():
            await asyncio.wait([self._broker_start], timeout=0.01)
            pid = self._broker_pid()
            if pid and not is_guarded and self._guard is not None:
                self._guard.watch(pid, "broker")
                is_guarded = True
        self._broker_start.result()

    def _start_broker_now(self) -> None:
        from gati_core.fabric import EmbeddedBroker

        folder = self._options.directory / FOLDER
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        self._broker = EmbeddedBroker(folder / "nats", port=self._broker_port)
        self._broker.start()

    def _broker_pid(self) -> int:
        try:
            return self._broker.pid if self._broker is not None else 0
        except Exception:
            return 0  # it is not running

    def _mark(self, part: str, line: str) -> None:
        if part not in self._up and not self._is_serving:
            self._output.say(f"  {line}", "dim")
        self._up.add(part)
        self._progress.set()

    def _awaited(self) -> str:
        parts = [part for part in ("broker", "router", "ingress") if part not in self._up]
        packages = None if self._expected is None else self._expected - self._loaded - self._failed
        if packages is None:
            parts.append("worker")
        elif packages:
            parts.append(f"worker ({', '.join(sorted(packages))})")
        return ", ".join(parts)

    async def _unready_reasons(self) -> list[str]:
        """What the ingress itself says."""
        try:
            async with asyncio.timeout(1):
                host = reachable_host(self._host).strip("[]")
                reader, writer = await asyncio.open_connection(host, self._port)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    answer = await reader.read()
                finally:
                    writer.close()
            head, _, body = answer.partition(b"\r\n\r\n")
            if head.split(b" ", 2)[1] == b"200":
                return []
            return [str(reason) for reason in json.loads(body).get("reasons", [])] or ["the ingress is not ready"]
        except (OSError, TimeoutError, ValueError, IndexError):
            return ["the ingress does not answer"]

    # -- what people see ----------------------------------------------------------------------

    def _show_banner(self, took_s: float) -> None:
        say = self._output.say
        live = [route for route in self._routes if route.is_live and not route.shadowed_by]
        say("")
        if live:
            say(f"ready in {took_s:.1f} s on {self._url}", "bold green")
            say("")
            self._output.routes(live)
            say("")
            for line in curl_lines(live, self._url):
                say(f"  {line}", "cyan")
        else:
            say(f"no package could be loaded; {self._url} answers 404 until one can", "bold yellow")
        for route in self._routes:
            if route.is_live and route.shadowed_by:
                say(f"conflict: {route.method} {route.path} of {route.app} is hidden by {route.shadowed_by}", "yellow")
        say("")
        if self._failed:
            say(
                f"still running: fix {', '.join(sorted(self._failed))} and save, it is loaded again by itself", "yellow"
            )
        say("Save a file to reload it. Ctrl-C stops.", "dim")

    async def _follow_routes(self) -> None:
        """New routes are there at once; old ones go when the old code has begun to leave."""
        await self._refresh_routes()
        await asyncio.sleep(_OLD_CODE_LEAVES_S)
        await self._refresh_routes()

    async def _refresh_routes(self) -> None:
        from gati_cli.routes import read_routes
        from gati_core.errors import GatiError

        try:
            async with open_target(self._target) as fabric:
                report = await read_routes(fabric)
        except (GatiError, CliError) as exc:
            self._output.say(f"the routes could not be read: {exc}", "yellow")
            return
        before = [route for route in self._routes if route.is_live]
        self._routes = report.routes
        if self._is_serving:
            for line in changed_routes(before, [route for route in report.routes if route.is_live]):
                self._output.say(f"  {line}", "cyan")

    def _on_line(self, service: str, text: str) -> None:
        event = parse_event(text)
        if event is not None:
            self._on_event(service, event)
        elif text and not text.startswith(f"gati-{service}: "):  # that one is told when it ends
            self._output.say(f"{service} | {text}")

    def _on_event(self, service: str, event: Event) -> None:
        name, app = event["event"], str(event.get("app", ""))
        if name == "router_started":
            self._mark("router", "router")
        elif name == "ingress_started":
            self._mark("ingress", f"ingress  {self._url}")
        elif name == "worker_started":
            self._expected = {str(package) for package in event.get("packages", [])}
            self._progress.set()
        elif name == "package_started":
            self._on_package(app, float(event.get("took_ms", 0)) / 1000)
        elif name == "package_failed":
            self._output.say_all(failure(event, directory=self._options.directory))
            if app not in self._loaded:
                self._failed.add(app)
                if self._is_serving:
                    self._output.say("  fix it and save", "yellow")
            self._progress.set()
        elif name == "package_reload_refused":
            self._output.say(f"  the old code of {app} keeps serving: fix it and save", "yellow")
        else:
            self._output.say_all(plain(event))

    def _on_package(self, app: str, took_s: float) -> None:
        verb = "reloaded" if app in self._loaded else "loaded"
        self._loaded.add(app)
        self._failed.discard(app)
        if not self._is_serving:
            self._mark(f"package {app}", f"worker   {app} loaded in {took_s:.2f} s")
            return
        self._output.say(f"{verb} {app} in {took_s:.2f} s", "green")
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._follow_routes())

    # -- keeping it up ------------------------------------------------------------------------

    async def _keep_running(self, service: Service) -> None:
        """Start a service again, once, if it ends; the second time something is really wrong."""
        while True:
            code = await service.wait()
            if self._guard is not None:
                self._guard.forget(service.pid)
            told = [line for line in service.tail if line.startswith(f"gati-{service.name}: ")]
            if not self._is_serving:
                why = told[-1].partition(": ")[2] if told else f"it ended ({_described(code)})"
                self._say_tail(service.name, [] if told else service.tail)
                raise CliError(f"the {service.name} could not start: {why}", exit_code=2 if code == 2 else 1)
            self._output.say(f"the {service.name} ended unexpectedly ({_described(code)})", "bold red")
            self._say_tail(service.name, service.tail)
            self._allow_restart(service.name)
            await service.start()
            if self._guard is not None:
                self._guard.watch(service.pid)

    async def _keep_broker_running(self, broker: EmbeddedBroker) -> None:
        while True:
            await asyncio.sleep(0.25)
            if broker.is_running:
                continue
            log = self._options.directory / FOLDER / "nats" / "nats-server.log"
            self._output.say("the broker ended unexpectedly", "bold red")
            self._say_tail("broker", log.read_text(errors="replace").splitlines()[-10:] if log.exists() else [])
            self._allow_restart("broker")
            await asyncio.to_thread(broker.stop)
            await self._start_broker()
            broker = self._broker or broker

    def _allow_restart(self, name: str) -> None:
        now = time.monotonic()
        if now - self._restarted_at.get(name, -_RESTART_ONCE_PER_S) < _RESTART_ONCE_PER_S:
            raise CliError(
                f"the {name} ended again within {_RESTART_ONCE_PER_S:g} s of its restart; its last lines are above"
            )
        self._restarted_at[name] = now
        self._output.say(f"starting the {name} again; requests wait for it or are answered 503", "yellow")

    def _say_tail(self, name: str, lines: Sequence[str]) -> None:
        for line in list(lines)[-10:]:
            event = parse_event(line)
            shown = plain({**event, "level": "debug"}) if event is not None else [Line(line)]
            self._output.say_all(Line(f"  {name} | {each.text}", "dim") for each in shown)


def _described(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
