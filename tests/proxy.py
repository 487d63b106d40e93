"""A network that misbehaves: a TCP proxy before a real server that stalls, resets and slows what goes through it."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

_PIECE = 16 << 10
#: Closing a socket that lingers for no time sends a reset in place of a farewell.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes connections to ``127.0.0.1:port`` on to a server's unix socket, in a thread of its own.

    Args:
        target: unix socket of the server; it may come and go.
        rate: bytes a second in each direction, all connections together; None for as fast as it goes.
        tls: what to speak on this side, as a terminator of TLS does.
    """

    def __init__(self, target: Path, rate: float | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.rate = rate
        self._target = target
        self._tls = tls
        self._clients: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._start())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _start(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._turns = asyncio.Lock(), asyncio.Lock()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    def stall(self) -> None:
        """Nothing passes until ``flow``; connections stay open."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        """End a stall."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def reset(self) -> None:
        """Break every connection, also in the middle of a message."""
        self._call(self._break_all())

    async def _break_all(self) -> None:
        for client in [client for client in self._clients if not client.transport.is_closing()]:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.transport.abort()

    def close(self) -> None:
        """End the proxy and its connections."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        self._flowing.set()
        await self._break_all()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, far_writer, self._turns[0]))
                both.create_task(self._pass(far_reader, writer, self._turns[1]))
        except* OSError:
            pass
        finally:
            self._clients.discard(writer)
            writer.transport.abort()
            if far_writer is not None:
                far_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: asyncio.Lock) -> None:
        while data := await reader.read(_PIECE):
            async with turn:
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has ended: so does the other

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
