"""Which price a name has, what the built-in list has, and what history would cost under other prices."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody

from tollkeeper.api.paths import PREFIX
from tollkeeper.api.price_answers import PreviewAnswer, preview_answer
from tollkeeper.api.usage_params import parse_span
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.shown_prices import (
    NoPrice,
    built_in_prices,
    no_price_json,
    price_json,
    show_price,
)
from tollkeeper.domain.events import TEXT_CHARS_MAX
from tollkeeper.domain.instants import from_us
from tollkeeper.errors import BadParameter, NotFound
from tollkeeper.http.routes.calls import (
    APPLY_BYTES_MAX,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    answer,
    in_thread,
    json_answer,
    now_us_of,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.files import toml_of
from tollkeeper.meter.price_preview import PricePreview


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of prices beside those of the entries."""
    return [show, built_in, preview]


@get(
    f"{PREFIX}/prices/show",
    opt=operation(
        OperationDoc(
            "Show which price a model's name has",
            "prices",
            OPERATOR,
            {
                200: json_answer(
                    {
                        "anyOf": [
                            {"$ref": "#/components/schemas/PriceAnswer"},
                            {"$ref": "#/components/schemas/NoPriceAnswer"},
                        ]
                    },
                    "The price; or, with `model` null, why there is none and the nearest names.",
                )
            },
            description="As `tollkeeper prices show`.",
            query=(
                QueryDoc("name", "The model, as events name it.", required=True),
                QueryDoc("account", "Whose price; the general one by default."),
                QueryDoc("variant", "Of the model: `batch`, `flex`, …"),
                QueryDoc("plan", "The plan whose mark-up applies."),
                QueryDoc("at", "When: a date or a date-time; now by default."),
            ),
            problems=(404,),
        )
    ),
)
@in_thread("management")
def show(request: AnyRequest) -> Response[bytes]:
    """Show which price a model's name has."""
    params = params_of(request, "name", "account", "variant", "plan", "at")
    name = params.get("name", "")
    if not name or len(name) > TEXT_CHARS_MAX:
        raise BadParameter(
            f"name must be the name of a model, of at most {TEXT_CHARS_MAX} characters", field="name"
        )
    directory = service(request, Directory)
    account = params.get("account", "")
    if account and directory.account(account) is None:
        raise NotFound(f"there is no account {account[:64]!r}")
    at_us = now_us_of(request)
    if "at" in params:
        at_us, _ = parse_span({"from": params["at"], "to": "9999-12-31"}, from_us(at_us))
    shown = show_price(
        directory.price_book,
        name,
        at_us=at_us,
        account_id=account,
        variant=params.get("variant", ""),
        plan=params.get("plan", ""),
    )
    return answer(no_price_json(shown) if isinstance(shown, NoPrice) else price_json(shown))


@get(
    f"{PREFIX}/prices/built-in",
    opt=operation(
        OperationDoc(
            "List the built-in prices",
            "prices",
            OPERATOR,
            {
                200: json_answer(
                    {
                        "type": "object",
                        "required": ["items"],
                        "properties": {
                            "items": {"type": "array", "items": {"$ref": "#/components/schemas/PriceAnswer"}}
                        },
                    },
                    "All models of the list that have a price now, by seller.",
                )
            },
            description="The list of the `genai-prices` package, before own prices and mark-ups: some 2,300 models.",
            query=(QueryDoc("seller", "Only this seller's, e.g. `anthropic`."),),
        )
    ),
)
@in_thread("management")
def built_in(request: AnyRequest) -> Response[bytes]:
    """List the built-in prices."""
    params = params_of(request, "seller")
    book = service(request, Directory).price_book
    listed = built_in_prices(book, at_us=now_us_of(request), seller=params.get("seller", ""))
    return answer({"items": [price_json(shown) for shown in listed]})


@post(
    f"{PREFIX}/prices/preview",
    status_code=200,
    request_max_body_size=APPLY_BYTES_MAX,
    opt=operation(
        OperationDoc(
            "Price history again under other prices",
            "prices",
            OPERATOR,
            {200: json_answer(PreviewAnswer, "What the span would cost, by account and model.")},
            description="Changes nothing. The file's prices, mark-ups and aliases are put over those of the catalog by "
            "their ids. Costs that were stated, and estimates, stay.",
            query=(
                QueryDoc("from", "Date or date-time; everything by default."),
                QueryDoc("to", "The same; what is at `to` is not counted."),
                QueryDoc("account", "Only this account's."),
            ),
            body=BodyDoc(
                {"application/toml": {"type": "string"}, "text/plain": {"type": "string"}},
                '[[prices]]\nid = "gpt-4o"\nmodel = "gpt-4o"\nprompt_nanos_per_million = 3000000000\n',
            ),
            problems=(404, 413, 415),
        )
    ),
)
@in_thread("maintenance")
def preview(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Price history again under other prices."""
    params = params_of(request, "from", "to", "account")
    span = {name: value for name, value in params.items() if name != "account"}
    from_us_, to_us_ = parse_span(span, from_us(now_us_of(request)))
    account = params.get("account")
    if account is not None and service(request, Directory).account(account) is None:
        raise NotFound(f"there is no account {account[:64]!r}")
    entries = parse_declaration(toml_of(request, body))
    rows = service(request, PricePreview).preview(entries, from_us=from_us_, to_us=to_us_, account_id=account)
    return answer(preview_answer(rows))
