"""Usage as a program states it: quantities in units, as text, `Decimal`, int or float."""

from __future__ import annotations

from collections.abc import Mapping

from tollkeeper.domain import requests
from tollkeeper.domain.quantities import VARIANT_CHARS_MAX, BadQuantity, parse_quantities
from tollkeeper.errors import BadParameter


class Usage(requests.Usage):
    """
    What a request is expected to use (at `admit`), or did use (at `settle`): `tollkeeper.Usage`.

        Usage(prompt_tokens=1200, completion_tokens=80, model="gpt-4o", quantities={"seconds": "61.5", "images": 2})

    Its attribute `quantities` has whole micro-units (`61_500_000`), so it is not stated again as it is.
    """

    __slots__ = ()

    def __new__(
        cls,
        prompt_tokens: int = 0,
        cached_prompt_tokens: int = 0,
        completion_tokens: int = 0,
        reasoning_tokens: int = 0,
        model: str = "",
        cost_nanos: int | None = None,
        credits: int | None = None,
        quantities: Mapping[str, object] | None = None,
        variant: str = "",
    ) -> Usage:
        """
        Make a usage.

        Args:
            quantities: Name → units, a decimal of at most 6 places.
            variant: Of the model: `batch`, `flex`, …; at most 64 characters.

        Raises:
            BadParameter: A quantity or the variant is out of bounds.
        """
        micros: Mapping[str, int] = {}
        if quantities:
            try:
                micros = parse_quantities(quantities)
            except BadQuantity as exc:
                raise BadParameter(str(exc), field=exc.field) from None
        if variant and (not isinstance(variant, str) or len(variant) > VARIANT_CHARS_MAX):
            raise BadParameter(
                f"variant must be text of at most {VARIANT_CHARS_MAX} characters", field="variant"
            )
        return super().__new__(
            cls,
            prompt_tokens,
            cached_prompt_tokens,
            completion_tokens,
            reasoning_tokens,
            model,
            cost_nanos,
            credits,
            micros,
            variant,
        )
