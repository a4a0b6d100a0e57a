"""The base as adapters are compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from optiq_core.adapters.format import AdapterManifest, validate_against_base
from optiq_core.adapters.manifest import ModuleShape
from optiq_core.adapters.recorded_base import another_name, check_recorded_base
from optiq_core.errors import AdapterError


class BaseInfo(NamedTuple):
    """What an adapter must match.

    `modules` are shapes by path, `names` what the base is known as. Adapters that record the digest of
    another base are refused if `strict`.
    """

    digest: str
    modules: Mapping[str, ModuleShape]
    names: tuple[str, ...] = ()
    strict: bool = True

    def check(self, manifest: AdapterManifest) -> dict[str, str]:
        """Warnings for an adapter that can be served.

        Raises:
            AdapterError: it cannot.
        """
        validate_against_base(manifest, self.modules)
        try:
            check_recorded_base(manifest, self.digest)
        except AdapterError as error:
            if self.strict:
                raise
            return {"base": str(error)}
        hint = another_name(manifest, self.names)
        return {"base": hint} if hint else {}
