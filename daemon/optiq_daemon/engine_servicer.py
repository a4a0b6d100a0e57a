"""The engine's service: one base, its adapters and its batches, as RPCs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq_core.heap import freeze_heap
from optiq_daemon import errors
from optiq_daemon.engine_stream import RequestReader, StepWriter
from optiq_protos.internal.v1 import engine_pb2 as pb
from optiq_protos.internal.v1 import engine_pb2_grpc

if TYPE_CHECKING:
    from optiq_core.base import LoadedBase
    from optiq_core.engine.constraint import ConstraintCompiler
    from optiq_core.engine.engine import Engine
    from optiq_core.kv.factory import CachePlan

log = logging.getLogger("optiq.engine")

MB = 1_000_000
# A probe is a step that running streams would have to wait for.
PROBE_LOOKS = 100
PROBE_LOOK_S = 0.05
PROBE_PAUSE_S = 0.2


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Translates between the wire and the engine.

    Args:
        settings: the process's flags.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self._settings = settings
        self._caches: CachePlan
        self._constraints: ConstraintCompiler | None = None
        self._stream = settings.stream
        self._writer = StepWriter(self._stream)
        self._reader: RequestReader | None = None
        self._loaded: asyncio.Future[tuple[LoadedBase, Engine]] = asyncio.get_running_loop().create_future()
        # One thread reads adapters: MLX streams belong to threads, and reading in turn keeps decoding undisturbed.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    async def load_base(self) -> None:
        """Find and load the base, then start the engine.

        Raises:
            OptiqError: it cannot be loaded; callers of ``GetBase`` were told.
        """
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._load)
        except Exception as error:
            self._loaded.set_exception(errors.RefusedError(str(error), reason="BASE_NOT_LOADABLE"))
            raise
        base, engine = loaded
        self._reader = RequestReader(
            self._stream, self._writer, base=base, engine=engine, compiler=lambda: self._compiler(base)
        )
        self._reader.start()
        self._loaded.set_result(loaded)

    def _compiler(self, base: LoadedBase) -> ConstraintCompiler:
        if self._constraints is None:
            from optiq_core.engine.constraint import ConstraintCompiler

            self._constraints = ConstraintCompiler(base.tokenizer)
        return self._constraints

    def _load(self) -> tuple[LoadedBase, Engine]:
        from optiq_core.base import load_base, resolve_base, setup_device

        profile = setup_device()
        log.info("device %s (%s), compute %s", profile.kind, profile.name, profile.compute)
        for note in profile.notes:
            log.info("%s", note)
        from optiq_core.engine.engine import Engine

        folder = resolve_base(self._settings.model, progress=lambda text: log.info("%s", text))
        base = load_base(folder, profile=profile, load_in=self._settings.load_in)
        for note in base.profile.notes[len(profile.notes) :]:
            log.warning("%s", note)
        log.info("base %s: %.0f MB, %.2f bits per weight", base.path, base.memory_bytes / 1e6, base.bits_per_weight)
        plan = self._plan_caches(base)
        engine = Engine(
            base,
            max_batch=self._settings.max_batch,
            max_queue=self._settings.max_queue,
            prefill_chunk=self._settings.prefill_chunk,
            new_cache=plan,
            told=self._writer.flush,
            kv_cache_bytes=self._settings.kv_cache_mb * MB or None,
            prefix_cache_bytes=self._settings.prefix_cache_mb * MB,
        )
        engine.start()
        freeze_heap()
        return base, engine

    def _plan_caches(self, base: LoadedBase) -> CachePlan:
        from optiq_core.kv.centers import centers_for
        from optiq_core.kv.config import parse_uniform, read_kv_config
        from optiq_core.kv.factory import plan_caches

        file = self._settings.kv_config
        wanted = read_kv_config(file) if file else parse_uniform(self._settings.kv)
        self._caches = plan_caches(base.model, wanted, centers_for(wanted, base.model, base.tokenizer))
        for note in self._caches.notes:
            log.warning("KV cache: %s", note)
        log.info(
            "KV cache %s: %.0f bytes per token and %.0f per row, float %.0f per token",
            self._caches.name,
            self._caches.bytes_per_token,
            self._caches.window_bytes,
            self._caches.float_bytes_per_token,
        )
        return self._caches

    async def close(self) -> None:
        """End the engine; running requests fail."""
        if self._loaded.done() and not self._loaded.exception():
            _, engine = self._loaded.result()
            await asyncio.to_thread(engine.close)
        if self._reader is not None:
            await asyncio.to_thread(self._reader.close)
        await asyncio.get_running_loop().run_in_executor(self._loader, _end_streams)
        self._loader.shutdown()

    async def _ready(self) -> tuple[LoadedBase, Engine]:
        return await asyncio.shield(self._loaded)

    async def GetBase(self, request: pb.GetBaseRequest, context: Any) -> pb.GetBaseResponse:  # noqa: N802
        base, engine = await self._ready()
        return pb.GetBaseResponse(
            path=str(base.path),
            digest=base.digest,
            memory_bytes=base.memory_bytes,
            bits_per_weight=base.bits_per_weight,
            layer_count=len(base.model.layers),
            max_context=base.max_context,
            modules=[
                pb.TargetModule(
                    path=path,
                    input_dims=shape.input_dims,
                    output_dims=shape.output_dims,
                    kind=shape.kind,
                    experts=shape.experts,
                )
                for path, shape in engine.modules.items()
            ],
            device_kind=base.profile.kind,
            device_name=base.profile.name,
            compute=base.profile.compute,
            notes=base.profile.notes,
        )

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:  # noqa: N802
        _, engine = await self._ready()
        nbytes = await asyncio.get_running_loop().run_in_executor(
            self._loader, engine.load_adapter, request.digest, Path(request.path)
        )
        log.info("adapter %s loaded, %.2f MB", request.digest[:12], nbytes / 1e6)
        return pb.LoadAdapterResponse(resident_bytes=nbytes)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:  # noqa: N802
        from optiq_core.engine.types import InUseError

        _, engine = await self._ready()
        try:
            await asyncio.to_thread(engine.unload_adapter, request.digest)
        except InUseError as error:
            raise errors.RefusedError(str(error), reason="ADAPTER_IN_USE") from None
        return pb.UnloadAdapterResponse()

    async def MergeAdapters(  # noqa: N802
        self, request: pb.MergeAdaptersRequest, context: Any
    ) -> pb.MergeAdaptersResponse:
        _, engine = await self._ready()
        parts = [(Path(part.path), part.weight) for part in request.parts]
        await asyncio.get_running_loop().run_in_executor(
            self._loader, engine.merge_dora, parts, Path(request.target_path)
        )
        return pb.MergeAdaptersResponse()

    async def ProbeAdapters(  # noqa: N802
        self, request: pb.ProbeAdaptersRequest, context: Any
    ) -> pb.ProbeAdaptersResponse:
        _, engine = await self._ready()
        for _ in range(PROBE_LOOKS):
            if not engine.status().active_rows:
                break
            await asyncio.sleep(PROBE_LOOK_S)
        digests, differences = list(request.digests), dict[str, float]()
        while digests:
            # Streams that run get a step between two small probes; nobody is held up by a large one.
            several = 1 if engine.status().active_rows else len(digests)
            differences |= await asyncio.to_thread(engine.probe_adapters, digests[:several])
            digests = digests[several:]
            if digests:
                await asyncio.sleep(PROBE_PAUSE_S)
        return pb.ProbeAdaptersResponse(differences=differences)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        _, engine = await self._ready()
        status = engine.status()
        return pb.GetStatusResponse(
            active_rows=status.active_rows,
            queued_requests=status.queued_requests,
            resident_adapters=status.resident_adapters,
            adapter_bytes=status.adapter_bytes,
            kv_cache_bytes=status.kv_cache_bytes,
            active_memory_bytes=status.active_memory_bytes,
            peak_memory_bytes=status.peak_memory_bytes,
            tokens_per_second=status.tokens_per_second,
            generated_tokens=status.generated_tokens,
            max_adapters_in_one_step=status.max_adapters_in_one_step,
            kv_cache=self._caches.name,
            kv_bytes_per_token=self._caches.bytes_per_token,
            kv_budget_bytes=status.kv_budget_bytes,
            prefix_cache_bytes=status.prefix_cache_bytes,
            prefix_cache_entries=status.prefix_cache_entries,
            prefix_hits=status.prefix_hits,
            prefix_hit_tokens=status.prefix_hit_tokens,
        )


def _end_streams() -> None:
    """End this thread's MLX streams; a thread that ends before its streams aborts the process."""
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.synchronize()
        mx.clear_streams()
