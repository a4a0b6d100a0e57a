"""What ``optiq lora info`` shows of an adapter folder, in any format that we read. No MLX here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from optiq_core.adapters.format import read_manifest
from optiq_core.adapters.lora_config import FILE_NAME, LoraConfig, read_lora_config
from optiq_core.adapters.manifest import AdapterManifest
from optiq_core.train.ranks import distribution


@dataclass(frozen=True)
class Description:
    """An adapter's manifest and, where Optiq trained it, its configuration."""

    manifest: AdapterManifest
    config: LoraConfig | None

    @property
    def ranks(self) -> dict[str, int]:
        return {module.path: module.rank for module in self.manifest.modules}

    def as_text(self, *, full: bool = False) -> str:
        """Lines for a person; with ``full`` the card of the training run too."""
        manifest, config = self.manifest, self.config
        base = manifest.base_model or (config.base_model if config else "") or "not recorded"
        lines = ["OptIQ LoRA adapter" if config else f"{manifest.format} {manifest.kind} adapter", f"  base: {base}"]
        if config:
            lines.append(f"  rank: {config.rank} (scaling: {config.rank_scaling})")
            lines.append(f"  scale: {config.scale}  dropout: {config.dropout}")
        else:
            scales = sorted({module.scale for module in manifest.modules})
            lines.append(f"  scale: {', '.join(f'{scale:g}' for scale in scales)}")
        lines.append(f"  rank distribution: {distribution(self.ranks)} across {len(manifest.modules)} adapted modules")
        lines.append(f"  targets: {', '.join(manifest.targets)}")
        lines.append(f"  parameters: {manifest.parameter_count:,}  on disk: {manifest.disk_bytes:,} bytes")
        if config and config.training:
            card = config.training
            loss = f", valid loss {card.valid_loss:.4f}" if card.valid_loss is not None else ""
            lines.append(f"  trained: {card.steps} steps on {card.examples} examples{loss}")
        if full:
            lines += _card(config) if config else ["  card: none, Optiq did not train it"]
            lines += [f"  rank {rank:>3}  {path}" for path, rank in self.ranks.items()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same and more, for programs."""
        manifest = self.manifest
        return {
            "format": manifest.format,
            "kind": manifest.kind,
            "base_model": manifest.base_model,
            "parameters": manifest.parameter_count,
            "disk_bytes": manifest.disk_bytes,
            "targets": list(manifest.targets),
            "rank_distribution": {str(rank): count for rank, count in distribution(self.ranks).items()},
            "ranks": self.ranks,
            "optiq": msgspec.to_builtins(self.config) if self.config else None,
        }


def _card(config: LoraConfig) -> list[str]:
    lines = ["  versions: " + ", ".join(f"{name} {version}" for name, version in config.versions.items())]
    if config.training is None:
        return lines
    card: dict[str, Any] = msgspec.to_builtins(config.training)
    settings: dict[str, Any] = card.pop("config", {})
    lines += [f"  {name}: {value}" for name, value in card.items() if name not in settings]
    return [*lines, "  settings:", *(f"    {name}: {json.dumps(value)}" for name, value in settings.items())]


def describe(folder: Path) -> Description:
    """Read what an adapter folder says about itself.

    Raises:
        AdapterError: it is not an adapter, or is damaged.
    """
    manifest = read_manifest(folder)
    ours = (folder / FILE_NAME).exists()
    return Description(manifest=manifest, config=read_lora_config(folder) if ours else None)
